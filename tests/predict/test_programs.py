"""What programs, experts and adapters change in the seconds and bytes of regular layouts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pluribus.hardware.catalogue import find_chip
from pluribus.hardware.pool import Pool
from pluribus.model.model import Model
from pluribus.model.share import Share
from pluribus.predict.calibrate import interval
from pluribus.predict.compute import QUANTISE_BYTES, layer_work
from pluribus.predict.gemm import gemm_seconds
from pluribus.predict.operators import ELEMENTWISE_EFFICIENCY, FLASH_BEHIND, operator_work
from pluribus.predict.regular import Layout, Terms, regular_terms
from pluribus.predict.regular_memory import regular_memory
from pluribus.predict.software import FSDP, MEGATRON, MEGATRON_2021, MEGATRON_BRIDGE, Software
from pluribus.spec.calibration import IDENTITY

DENSE = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 8, "num_attention_heads": 32, "num_key_value_heads": 8,
    "vocab_size": 32000,
}  # fmt: skip
MIXTRAL = {**DENSE, "model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}
CHIP = find_chip("nvidia-h100-80g", where="test")
POOL = Pool(address="here/pool", chip=CHIP, nodes=2, chips_per_node=8, nic_gbps=400)
LAYOUT = Layout(tp=2, pp=1, dp=8, zero=1, micro_batch=1, global_batch=64)


def terms(
    layout: Layout = LAYOUT, software: Software = MEGATRON, config: dict[str, object] = DENSE
) -> Terms:
    return regular_terms(Model.from_config(dict(config)), POOL, layout, 4096, "bf16", software)


def test_adapters_cost_no_weight_gradients_no_sums_and_no_update() -> None:
    whole, adapters = terms(), terms(software=replace(MEGATRON, frozen=True))
    (stage,) = adapters.stages
    assert stage.sync.seconds(IDENTITY) == stage.update.seconds(IDENTITY) == 0
    # A third of the products makes weight gradients.
    assert 0.5 < adapters.seconds() / whole.seconds() < 0.8


def test_experts_are_updated_by_the_replicas_that_hold_them() -> None:
    """With as many expert ranks as replicas nobody shares an expert's update."""
    one = Layout(dp=8, zero=1, global_batch=64)
    shared, owned = (terms(replace(one, ep=ep), config=MIXTRAL).stages[0].update for ep in (1, 8))
    assert owned.memory == pytest.approx(shared.memory, rel=1e-6)
    plain, every = (
        terms(replace(one, ep=ep, zero=0), config=MIXTRAL).stages[0].sync.seconds(IDENTITY)
        for ep in (1, 8)
    )
    assert every < 0.35 * plain


def test_what_runs_under_products_is_not_waited_for() -> None:
    assert terms(software=MEGATRON_BRIDGE).seconds() < terms(software=MEGATRON).seconds()


def test_a_host_slower_than_the_chip_sets_the_pace() -> None:
    slow = replace(MEGATRON_2021, host_s=1.0, host_backward=1.0)
    # Eight micro-batches, eight blocks, forward and backward.
    assert terms(software=slow).seconds() == pytest.approx(8 * 8 * 2 * 1.0, rel=0.05)


def test_drag_holds_up_the_chip_and_not_the_host() -> None:
    for software, share in (
        (replace(MEGATRON_2021, host_s=0.0, micro_batch_s=0.0), 1.0),
        (replace(MEGATRON_2021, host_s=10.0), 0.0),
    ):
        plain, held = (
            terms(software=replace(software, drag=drag)).stages[0].layers[1][0].time(
                IDENTITY, replace(software, drag=drag), 1, "none"
            )
            for drag in (1.0, 1.5)
        )  # fmt: skip
        assert held.forward == pytest.approx((1 + 0.5 * share) * plain.forward, rel=1e-3)
        assert held.backward == pytest.approx((1 + 0.5 * share) * plain.backward, rel=1e-3)


def test_a_wait_in_sums_grows_with_each_doubling_of_the_ranks() -> None:
    """Two sums a block and direction, forward and backward, eight micro-batches, eight blocks."""
    wait = 1e-3
    added = []
    for tp in (1, 2, 8):
        layout = replace(LAYOUT, tp=tp, dp=8 // tp * 2, global_batch=64)
        plain, waiting = (replace(MEGATRON, host_s=0.0, sum_wait_s=each) for each in (0.0, wait))
        longer = terms(layout, waiting).seconds() - terms(layout, plain).seconds()
        added.append(longer / layout.micro_batches / 8 / 4)
    assert added == pytest.approx([0.0, 2 * wait, 4 * wait])


def test_without_sequence_parallelism_every_rank_does_all_norms_and_residuals() -> None:
    """Korthikanti et al. 2022, section 4.2.2: between regions tokens are divided or repeated."""
    block = Model.from_config(dict(DENSE)).layers[1]
    whole, divided, repeated = (
        {
            o.name: o.bytes
            for o in block.operators(Share(1, 4096, tp=tp, sequence_parallel=parallel))
        }
        for tp, parallel in ((1, False), (4, True), (4, False))
    )
    for name in ("attention_norm", "feed_forward_residual"):
        assert divided[name] == whole[name] / 4
        assert repeated[name] == whole[name]
    assert repeated["activation"] == divided["activation"]
    both = (replace(MEGATRON, sequence_parallel=each) for each in (True, False))
    quicker, slower = (terms(software=each).stages[0].layers[1][0].forward for each in both)
    assert slower.memory > 1.2 * quicker.memory


@pytest.mark.parametrize(("parallel", "hidden"), [(False, 0.9 / 4), (True, 0.45 / 4)])
def test_the_sums_of_the_backward_run_under_weight_gradients(parallel: bool, hidden: float) -> None:
    """Two of four directions' sums, or half of them where the tokens are divided; a tenth of what
    is hidden shows."""
    plain = replace(MEGATRON, sequence_parallel=parallel, host_s=0.0)
    cost = terms(software=plain).stages[0].layers[1][0]
    sums = cost.talk.tensor.seconds(IDENTITY)
    alone, under = (
        cost.time(IDENTITY, replace(plain, overlap_backward=each), 2, "full")
        for each in (False, True)
    )
    assert alone.backward - under.backward == pytest.approx(4 * hidden * sums)
    assert alone.tensor - under.tensor == pytest.approx(4 * hidden * sums)
    assert alone.forward == under.forward


def test_an_update_moves_the_bytes_of_its_program() -> None:
    (mixed,), (plain,) = (
        terms(software=replace(MEGATRON, update_bytes=each)).stages for each in (38, 19)
    )
    assert mixed.update.memory == pytest.approx(2 * plain.update.memory)


def test_the_loss_in_16_bits_is_quicker() -> None:
    (head,), (short,) = (
        [cost.forward.memory for cost, _ in terms(software=each).stages[0].layers[-1:]]
        for each in (MEGATRON, replace(MEGATRON, loss_passes=0.5))
    )
    assert 0.45 < short / head < 0.6


def test_a_vocabulary_without_padding_slows_the_head() -> None:
    """NVIDIA's guidance: rows of a multiple of 8 elements, better of 64."""
    seconds = [gemm_seconds(8192, n, 2048, 1, CHIP, "bf16") for n in (50304, 50260, 50258, 50257)]
    assert seconds == sorted(seconds)
    assert seconds[-1] > 2 * seconds[0]


def test_eager_kernels_move_more_and_ring_attention_takes_longer() -> None:
    eager, compiled = FSDP, replace(FSDP, eager_passes=1.0)
    assert terms(software=eager).seconds() > 1.03 * terms(software=compiled).seconds()
    ring = replace(LAYOUT, cp=4, dp=2)
    plain = replace(FSDP, ring_attention=1.0)
    assert terms(ring, FSDP).seconds() > terms(ring, plain).seconds()


def test_heads_of_64_reach_less_than_heads_of_128() -> None:
    model = Model.from_config(dict(DENSE))
    attention = next(o for o in model.layers[1].operators(Share(1, 4096)) if o.kind == "attention")
    narrow = replace(attention, k=attention.k // 2)
    seconds = [operator_work(o, CHIP, "bf16", MEGATRON)[0].attention for o in (attention, narrow)]
    assert seconds[1] > 1.1 * seconds[0]


def test_products_in_8_bits_pay_for_making_them_so() -> None:
    """By hand: inputs of q and kv (one), o, gate and up, down; gradients of each output."""
    block = Model.from_config(dict(DENSE)).layers[1]
    shape = (1, 4096)
    wide, narrow = (layer_work(block, CHIP, shape, p, MEGATRON) for p in ("bf16", "fp8"))
    rate = CHIP.memory_bytes_per_s * ELEMENTWISE_EFFICIENCY
    inputs, gradients = 3 * 4096 + 14336, (4096 + 2048) + 4096 + 2 * 14336 + 4096
    for w, n, width in zip(wide, narrow, (inputs, gradients), strict=False):
        assert n.memory - w.memory == pytest.approx(4096 * width * QUANTISE_BYTES / rate)


def test_an_older_flash_kernel_is_slower_where_the_chip_has_a_newer_one() -> None:
    model = Model.from_config(dict(DENSE))
    (attention,) = (o for o in model.layers[1].operators(Share(1, 4096)) if o.kind == "attention")
    second = replace(MEGATRON, flash_generation=2)
    for key, times in (("nvidia-h100-80g", FLASH_BEHIND), ("nvidia-a100-80g", 1.0)):
        chip = find_chip(key, where="test")
        new, old = (operator_work(attention, chip, "bf16", s)[0] for s in (MEGATRON, second))
        assert old.attention == pytest.approx(times * new.attention, rel=0.01)


@pytest.mark.parametrize("ranks", [8, 16])
def test_exchanges_under_products_are_not_waited_for_inside_a_node(ranks: int) -> None:
    layout = Layout(dp=ranks, ep=ranks, global_batch=64)
    experts = {**MIXTRAL, "num_local_experts": 16}
    exchanged = []
    for software in (MEGATRON, replace(MEGATRON, overlap_experts=0.9)):
        layers = [cost for cost, _ in terms(layout, software, experts).stages[0].layers]
        exchanged.append(max((c.talk.expert for c in layers), key=lambda w: w.seconds(IDENTITY)))
    waited, hidden = exchanged
    assert hidden.intra == pytest.approx(0.1 * waited.intra)
    assert hidden.inter == waited.inter
    assert (waited.inter > 0) == (ranks > POOL.chips_per_node)


def test_experts_products_follow_one_another() -> None:
    """Each expert's product ends with a last wave of its own."""
    block = Model.from_config(dict(MIXTRAL)).layers[1]
    grouped = next(o for o in block.operators(Share(1, 4096)) if o.kind == "grouped_gemm")
    batch = replace(grouped, kind="gemm")
    apart = operator_work(grouped, CHIP, "bf16", MEGATRON)[0]
    assert apart.experts > operator_work(batch, CHIP, "bf16", MEGATRON)[0].matmul
    assert apart.matmul == 0


def test_an_uncalibrated_interval_comes_from_the_priors() -> None:
    found = interval(terms().seconds, IDENTITY)
    assert found.mid == terms().seconds()
    assert 1.1 < found.high / found.mid < 1.6


def test_a_fully_sharded_pipeline_keeps_its_stage_whole() -> None:
    model = Model.from_config(dict(DENSE))

    def memory(pp: int):
        layout = Layout(tp=1, pp=pp, dp=16 // pp, zero=3, micro_batch=1, global_batch=64)
        return regular_memory(model, POOL, layout, 4096, "bf16", FSDP)

    assert memory(1).gradients == pytest.approx(memory(1).weights)
    assert memory(2).gradients == pytest.approx(8 * memory(2).weights)


def test_replicas_that_gather_wait_for_one_another() -> None:
    """A gather before each pass of each of 8 blocks and a scatter after it, hidden or not."""
    patient = replace(FSDP, gather_wait_s=0.0)
    for dp, doublings in ((8, 3), (16, 4)):
        layout = Layout(dp=dp, zero=3, micro_batch=1, global_batch=2 * dp)
        waited, not_waited = (terms(layout, software).seconds() for software in (FSDP, patient))
        expected = 2 * 3 * 8 * doublings * FSDP.gather_wait_s
        assert waited - not_waited == pytest.approx(expected, rel=1e-6)


def test_logits_are_kept_in_as_many_bytes_as_the_program_says() -> None:
    model = Model.from_config(dict(DENSE))
    less, more = (
        regular_memory(model, POOL, LAYOUT, 4096, "bf16", replace(MEGATRON, logit_bytes=b)).total
        for b in (8, 14)
    )
    assert more - less == pytest.approx(4096 * 32000 / 2 * 6)


def test_ranks_that_divide_tokens_have_gathered_states_whole() -> None:
    model = Model.from_config(dict(DENSE))

    def buffers(layout: Layout, states: float) -> float:
        software = replace(MEGATRON, gathered=states)
        return regular_memory(model, POOL, layout, 4096, "bf16", software).buffers

    divided, alone = (replace(LAYOUT, tp=tp, pp=1) for tp in (2, 1))
    whole = LAYOUT.micro_batch * 4096 * model.hidden_size * 2
    assert buffers(divided, 3) - buffers(divided, 1) == pytest.approx(2 * whole)
    assert buffers(alone, 3) == buffers(alone, 1)


def test_frozen_weights_need_no_gradients_and_no_moments() -> None:
    model = Model.from_config(dict(DENSE))
    frozen = replace(MEGATRON, frozen=True)
    trained, kept = (
        regular_memory(model, POOL, LAYOUT, 4096, "bf16", program) for program in (MEGATRON, frozen)
    )
    assert kept.gradients == kept.optimizer == 0
    assert trained.gradients > 0
    assert kept.weights == trained.weights
    assert kept.activations == trained.activations
