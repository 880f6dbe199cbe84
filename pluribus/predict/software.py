"""Software: how the program that trains spends what the chip gives; not a property of the chip."""

from __future__ import annotations

from dataclasses import dataclass, replace

# Bytes one mixed-precision update moves per parameter: fp32 gradient read for the norm and again
# for the update, master weight and both moments read and written, the 16-bit copy written, and
# the gradient cleared.
UPDATE_BYTES = 38


@dataclass(frozen=True, kw_only=True)
class Software:
    """What differs between training programs on the same chips.

    The defaults are Pluribus itself.

    Attributes:
        flash_attention: one kernel that never writes the scores (Dao et al. 2022); otherwise
            scores, softmax and dropout go through memory, as before 2022.
        flash_generation: of that kernel (FlashAttention 1, 2, 3, …); an older one than the chip's
            newest is slower.
        gradient_sync_bytes: of one gradient on the network.
        blocking_messages: whether a stage waits until what it sends has come.
        overlap_gradients: whether gradient sums run under the last backward.
        sequence_parallel: whether tokens between tensor-parallel regions are divided.
        weight_bytes: of one parameter, copy for computing included.
        gradient_bytes: of one gradient in memory.
        optimizer_bytes: of one parameter's optimiser state, master weight included.
        fused_gate: whether the activation and the product of a gated network are one kernel,
            which keeps one tensor less.
        fragmentation: bytes that the allocator loses between activations, as a share of them.
        logit_bytes: kept per logit until the loss's backward.
        selective_kept: share of what selective recompute keeps elsewhere (outputs of products
            and of attention) that this program keeps.
        selective_again: share of a block's forward that selective recompute runs again.
        eager_passes: traffic of RMS norms, rotary embeddings and gated activations as a multiple
            of what fused kernels move: without a compiler each is a chain of kernels, where a
            layer norm or GELU is one.
        loss_passes: traffic of the loss over the vocabulary as a multiple of one fp32 softmax's.
        accumulate_bytes: moved per parameter to add a micro-batch's gradient to the sum, beyond
            what the product that makes it hides.
        overlap_tensor: share of the tensor-parallel sums that runs under matrix products.
        overlap_experts: share of the experts' exchanges inside a node that runs under products.
        overlap_backward: whether the backward's tensor-parallel sums run under the products that
            make weight gradients.
        overlap_messages: whether an interleaved pipeline sends while it computes.
        ring_attention: seconds of attention over context-parallel ranks, as a multiple of its
            share of one rank's.
        update_bytes: moved per parameter by one update.
        frozen: whether adapters alone are trained (LoRA): no weight gradients, no sums.
        host_s: seconds the host takes to launch the forward of one layer: a small layer cannot
            take less.
        host_talk_s: what each further tensor-parallel rank adds to it, as they wait for the
            slowest host.
        sum_wait_s: what a block's sum over two ranks takes twice beyond the link, and each
            doubling of them once more: ranks wait for the slowest.
        gather_wait_s: what each gather or scatter of a block's divided weights (ZeRO-3) takes
            beyond the link for each doubling of the replicas: they wait for the slowest.
        host_backward: the same of the backward, as a multiple of the forward's.
        drag: the chip's seconds of a layer as a multiple of what its kernels and sums explain.
        micro_batch_s: seconds of each micro-batch outside layers.
        step_s: seconds of each step outside layers and updates: data, logging, scaling.
        rendezvous: whether a receiver, too, stands still for as long as a message takes, even
            if it was sent before.
        message_byte_s: seconds that a byte of a message costs beside its link: taking it apart,
            copies, putting it together.
        sum_byte_s: the same of a byte of summed gradients.
        cache_share: memory that the allocator holds beyond what is in use, per byte of kept
            activations.
        loss_copies: how many more times than the layer itself keeps them the logits are in
            memory while the loss is taken.
        gathered: hidden states of all tokens that a block of divided tokens has whole at once in
            its backward: the gathered input of a product and its gradient, or those of both
            tensor-parallel regions.
    """

    flash_attention: bool = True
    flash_generation: int = 4
    gradient_sync_bytes: float = 4
    blocking_messages: bool = False
    overlap_gradients: bool = False
    sequence_parallel: bool = True
    weight_bytes: float = 6
    gradient_bytes: float = 4
    optimizer_bytes: float = 8
    fused_gate: bool = False
    fragmentation: float = 0.0
    logit_bytes: float = 8
    selective_kept: float = 1.0
    selective_again: float = 0.1
    eager_passes: float = 1.0
    loss_passes: float = 1.0
    accumulate_bytes: float = 6
    overlap_tensor: float = 0.0
    overlap_experts: float = 0.0
    overlap_backward: bool = False
    overlap_messages: bool = False
    ring_attention: float = 1.0
    update_bytes: float = UPDATE_BYTES
    frozen: bool = False
    host_s: float = 0.0
    host_talk_s: float = 0.0
    sum_wait_s: float = 0.0
    gather_wait_s: float = 0.0
    host_backward: float = 1.0
    drag: float = 1.0
    micro_batch_s: float = 0.0
    step_s: float = 0.0
    rendezvous: bool = False
    message_byte_s: float = 0.0
    sum_byte_s: float = 0.0
    cache_share: float = 0.0
    loss_copies: float = 0.0
    gathered: float = 2


PLURIBUS = Software()
# Read off the zero-bubble paper's peaks: scores and masks of unfused attention, short-lived and
# large, leave holes between what is kept.
UNFUSED_FRAGMENTATION = 0.1

# fp16 weights, fp32 master, kernels before flash attention. Host times are fitted on half of
# vTrain's single-node runs (2 to 8 A100, layers like these), the only ones small enough to show
# them.
MEGATRON_2021 = Software(
    flash_attention=False, fragmentation=UNFUSED_FRAGMENTATION, blocking_messages=True,
    sequence_parallel=False, gradient_sync_bytes=2, weight_bytes=2, optimizer_bytes=12,
    selective_again=0.15, host_s=0.9e-3, host_talk_s=3e-5, host_backward=2.3,
    micro_batch_s=1e-3, step_s=2.4e-4,
)  # fmt: skip
# The same design since 2023; its host times are a guess, half of the above. The product that
# makes a gradient adds it to the sum as well: the bytes that still show are read off the
# zero-bubble paper's runs.
MEGATRON = Software(
    blocking_messages=True, weight_bytes=2, optimizer_bytes=12, fused_gate=True,
    overlap_messages=True, accumulate_bytes=2, host_s=5e-4, host_backward=0.92,
    micro_batch_s=2e-3, step_s=1e-3,
)  # fmt: skip
# Megatron-Bridge (NeMo): its recipes run sums under products, both over replicas and, with user
# buffers, in tensor parallelism. How much of the latter is hidden is read off its H100 runs.
MEGATRON_BRIDGE = replace(MEGATRON, overlap_gradients=True, overlap_tensor=0.6)
# Fully sharded: fp32 parameters and gradients, 16-bit copies only while in use. Its selective
# recompute keeps every second product; the plain loss keeps logits in 16 bits, in fp32, their
# log-softmax and its gradient. Passes of eager kernels and ring attention are read off
# torchtitan's runs with and without a compiler, and with 2 to 8 context-parallel ranks; its flash
# attention is PyTorch's own, the second. The wait in gathers is read off llm-foundry's runs of one
# model on 16 and 128 A100 (five sizes, 0.15 to 0.2 ms); torchtitan's on 8 and 128 H100 say the
# same. Sharded tensors keep the gathered inputs of a block that is run again, where Megatron
# gathers them anew.
FSDP = Software(
    logit_bytes=14, selective_kept=0.67, flash_generation=2,
    overlap_gradients=True, weight_bytes=4, selective_again=0.5, eager_passes=2.5,
    accumulate_bytes=0, ring_attention=1.35, host_s=5e-4, host_backward=0.92,
    micro_batch_s=2e-3, step_s=1e-3, gathered=4, gather_wait_s=1.8e-4,
)  # fmt: skip
# Megatron-DeepSpeed's pipeline engine: messages block and are parted over the tensor-parallel
# ranks (its `PartitionedTensor`), gradients are summed after the last micro-batch. Memory as the
# driver counts it. Four numbers are fitted on the 15 runs of OPT-350M on GH200 that Strati et al.
# 2025 ("Sailor", SOSP) publish. The drag is read off seven runs before BLOOM, a quarter slower than
# Megatron's kernels foretell; why, we do not know. Runs of MT-NLG 530B (Smith et al. 2022, arXiv
# 2201.11990), which it was not read off, say the same.
MEGATRON_DEEPSPEED = Software(
    flash_attention=False, sequence_parallel=False, weight_bytes=4, optimizer_bytes=8,
    blocking_messages=True, rendezvous=True, message_byte_s=4e-11, sum_byte_s=1e-10,
    cache_share=0.1, loss_copies=2.0, drag=1.25,
)  # fmt: skip

# By the name a file of measured runs calls them.
PROGRAMS = {
    "pluribus": PLURIBUS, "megatron": MEGATRON, "megatron-bridge": MEGATRON_BRIDGE,
    "megatron-2021": MEGATRON_2021, "megatron-deepspeed": MEGATRON_DEEPSPEED, "fsdp": FSDP,
}  # fmt: skip
