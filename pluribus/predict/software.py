"""Software: how the program that trains spends what the chip gives; not a property of the chip."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Software:
    """What differs between training programs on the same chips.

    The defaults are Pluribus itself.

    Attributes:
        flash_attention: one kernel that never writes the scores (Dao et al. 2022); otherwise
            scores, softmax and dropout go through memory, as before 2022.
        gradient_sync_bytes: of one gradient on the network.
        overlap_gradients: whether gradient sums run under the last backward.
        sequence_parallel: whether tokens between tensor-parallel regions are divided.
        weight_bytes: of one parameter, copy for computing included.
        gradient_bytes: of one gradient in memory.
        optimizer_bytes: of one parameter's optimiser state, master weight included.
        fused_gate: whether the activation and the product of a gated network are one kernel,
            which keeps one tensor less.
        selective_again: share of a block's forward that selective recompute runs again.
        host_s: seconds the host takes to launch the forward of one layer: a small layer cannot
            take less.
        host_talk_s: what (tp − 1)² tensor-parallel ranks add to it, as they wait for the
            slowest host.
        host_backward: the same of the backward, as a multiple of the forward's.
        micro_batch_s: seconds of each micro-batch outside layers.
        step_s: seconds of each step outside layers and updates: data, logging, scaling.
        blocking_messages: whether a stage stands still while it sends or receives.
        scattered_messages: whether each tensor-parallel rank sends only its part of a message.
        message_byte_s: seconds that a byte of a message costs beside its link: taking it apart,
            copies, putting it together.
        sum_byte_s: the same of a byte of summed gradients.
        cache_share: memory that the allocator holds beyond what is in use, per byte of kept
            activations.
        loss_copies: how many more times than the layer itself keeps them the logits are in
            memory while the loss is taken.
    """

    flash_attention: bool = True
    gradient_sync_bytes: float = 4
    overlap_gradients: bool = False
    sequence_parallel: bool = True
    weight_bytes: float = 6
    gradient_bytes: float = 4
    optimizer_bytes: float = 8
    fused_gate: bool = False
    selective_again: float = 0.1
    host_s: float = 0.0
    host_talk_s: float = 0.0
    host_backward: float = 1.0
    micro_batch_s: float = 0.0
    step_s: float = 0.0
    blocking_messages: bool = False
    scattered_messages: bool = False
    message_byte_s: float = 0.0
    sum_byte_s: float = 0.0
    cache_share: float = 0.0
    loss_copies: float = 0.0


PLURIBUS = Software()
# fp16 weights, fp32 master, kernels before flash attention. Host times are fitted on half of
# vTrain's single-node runs (2 to 8 A100), the only ones small enough to show them.
MEGATRON_2021 = Software(
    flash_attention=False, sequence_parallel=False, gradient_sync_bytes=2, weight_bytes=2,
    optimizer_bytes=12, selective_again=0.15, host_s=1.0e-3, host_talk_s=1.1e-5,
    host_backward=0.55, micro_batch_s=5e-3, step_s=1e-3,
)  # fmt: skip
# The same design since 2023; its host times are a guess, half of the above.
MEGATRON = Software(
    overlap_gradients=True, weight_bytes=2, optimizer_bytes=12, fused_gate=True,
    host_s=5e-4, host_backward=0.55, micro_batch_s=2e-3, step_s=1e-3,
)  # fmt: skip
# Fully sharded: fp32 parameters and gradients, 16-bit copies only while in use.
FSDP = Software(
    overlap_gradients=True, weight_bytes=4, selective_again=0.5, host_s=5e-4, host_backward=0.55,
    micro_batch_s=2e-3, step_s=1e-3,
)  # fmt: skip
# Megatron-DeepSpeed's pipeline engine: messages block and are parted over the tensor-parallel
# ranks (its `PartitionedTensor`), gradients are summed after the last micro-batch. Memory as the
# driver counts it. The four numbers are fitted on the 15 runs of OPT-350M on GH200 that Strati et
# al. 2025 ("Sailor", SOSP) publish.
MEGATRON_DEEPSPEED = Software(
    flash_attention=False, sequence_parallel=False, weight_bytes=4, optimizer_bytes=8,
    blocking_messages=True, scattered_messages=True, message_byte_s=4e-11, sum_byte_s=1e-10,
    cache_share=0.1, loss_copies=2.0,
)  # fmt: skip
