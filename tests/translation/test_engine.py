"""Sums over bands: exact where they can be, and independent of batch, order and memory."""

from __future__ import annotations

import gc
import itertools
import threading
import weakref
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from training_data import SMALL, SMALL_DENOISER

from mmccd_cli.config import MAX_SEED, DiffusionConfig, SamplingConfig
from mmccd_cli.errors import ComputeError
from mmccd_cli.translation.engine import (
    Execution,
    Work,
    band_work,
    masked_residual,
    plain_residual,
    run_within_memory,
)
from mmccd_cli.translation.masking import band_masks
from mmccd_cli.translation.schedule import Schedule
from mmccd_cli.translation.translators import Cycle, MaskedTranslator
from mmccd_cli.translation.unet import UNet

CPU = Execution(torch.device("cpu"), batch_size=5)
SAMPLING = SamplingConfig(band_width=8, band_stride=4)


def slices(n: int = 3, size: int = 16) -> Tensor:
    return torch.randn(n, 1, size, size, generator=torch.Generator().manual_seed(1))


def some_brain(n: int = 3, size: int = 16) -> Tensor:
    brain = torch.zeros(n, 1, size, size, dtype=torch.bool)
    for i in range(n):
        brain[i, 0, 2 : 8 + i, 3:13] = True
    return brain


def identity(x: Tensor) -> Tensor:
    return x


@pytest.fixture
def threads() -> Iterator[int]:
    """Three threads of torch for the test."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield 3
    torch.set_num_threads(before)


def test_batches_beside_each_other_come_in_order_and_each_has_a_thread_to_itself(
    threads: int,
) -> None:
    """What fails is raised, and what waits behind it is not computed."""
    started: list[int] = []
    both = threading.Barrier(threads, timeout=60)

    def compute(number: int) -> tuple[int, int]:
        started.append(number)
        if number < threads:
            both.wait()  # passes only where as many are computed at a time
        if number == 6:
            raise MemoryError
        return number, torch.get_num_threads()

    execution = replace(CPU, threads=threads)
    assert list(execution.each(range(6), compute)) == [(number, 1) for number in range(6)]
    assert torch.get_num_threads() == threads
    started.clear()
    both.reset()
    with pytest.raises(MemoryError):
        list(execution.each(range(1000), compute))
    assert len(started) < 6 + 4 * threads
    threading.Thread(target=lambda: started.append(-torch.get_num_threads())).start()
    while -threads not in started:  # a thread that is yet to come has as many as before
        assert -1 not in started


def test_who_takes_results_wakes_no_threads(threads: int) -> None:
    """Threads that share the sums of a batch would wait busily for more, beside the passes."""
    execution = replace(CPU, threads=threads)
    seen = [torch.get_num_threads() for _ in execution.each(range(4), lambda number: number)]
    assert seen == [1] * 4
    assert torch.get_num_threads() == threads


def test_the_number_of_threads_changes_no_bit(threads: int) -> None:
    """Neither of plain nor of masked residuals, whose sums are taken in one order."""
    x, work = slices(7), band_work(some_brain(7), SAMPLING)
    cycle, found = trained_like_cycle(), []
    plain = replace(cycle, forward=cycle.backward)
    torch.set_num_threads(1)
    for number in (1, threads):
        execution = replace(CPU, batch_size=2, threads=number)
        found.append(plain_residual(x, plain, residual="signed", execution=execution))
        found.extend(residual(x, work, cycle, execution))
        torch.set_num_threads(threads)
    assert all(torch.equal(*pair) for pair in zip(found[:3], found[3:], strict=True))


def fake_cycle(imagined: Any) -> Cycle:
    """A cycle that imagines by a function of (x, seen, condition noise, start noise)."""
    return Cycle(backward=identity, imagine=imagined)


def trained_like_cycle() -> Cycle:
    """A real, tiny, time conditioned network with weights that are not zero."""
    torch.manual_seed(0)
    denoiser, backward = UNet(SMALL_DENOISER).eval(), UNet(SMALL).eval()
    for network in (denoiser, backward):
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.2)
    translator = MaskedTranslator(denoiser, Schedule.from_config(DiffusionConfig()), 2)
    return Cycle(backward, forward=backward, imagine=translator)


def residual(
    x: Tensor, work: Work, cycle: Cycle, execution: Execution = CPU, **options: Any
) -> tuple[Tensor, Tensor]:
    settings = {"seed": 0, "residual": "signed", **options}
    numbers = settings.pop("numbers", torch.arange(len(x)))
    return masked_residual(x, numbers, work, cycle=cycle, execution=execution, **settings)


def test_a_perfect_imagination_leaves_no_residual_and_the_count_is_the_coverage() -> None:
    """Every pixel of the brain is hidden by each of its bands, two columns and two rows."""
    brain = some_brain()
    total, count = residual(slices(), band_work(brain, SAMPLING), fake_cycle(lambda x, *_: x))
    assert not total.any()
    assert (count[brain] == 4).all()


def test_errors_count_only_where_the_band_hides() -> None:
    """What is imagined in the seen part is wrong by 100, and must not show."""
    x, work = slices(), band_work(some_brain(), SAMPLING)
    cycle = fake_cycle(lambda x, seen, a, b: x - 1 + 101 * seen.float())
    total, count = residual(x, work, cycle)
    torch.testing.assert_close(total, count, atol=1e-4, rtol=1e-5)


def test_the_sum_equals_a_plain_loop_over_slices_and_masks() -> None:
    """The paper's formula, literally, with float64 sums."""
    x, brain = slices(2), some_brain(2)
    masks = band_masks(16, 16, band_width=8, stride=4)

    def imagine(x: Tensor, seen: Tensor, condition_noise: Tensor, start_noise: Tensor) -> Tensor:
        return torch.tanh(x) * seen + 0.3 * condition_noise + 0.2 * start_noise

    numbers = torch.tensor([17, 3])
    total, count = residual(
        x, band_work(brain, SAMPLING), fake_cycle(imagine), residual="squared", numbers=numbers
    )
    expected, hidden = torch.zeros(2, 2, 1, 16, 16, dtype=torch.float64)
    for i, number in enumerate(numbers.tolist()):
        for r, mask in enumerate(masks):
            if not (brain[i] & ~mask).any():
                continue
            generator = torch.Generator().manual_seed(number * 65_537 + r)
            noise = torch.randn(2, 16, 16, generator=generator)
            imagined = imagine(x[i], mask, noise[:1], noise[1:])
            expected[i] += (~mask * (imagined - x[i]) ** 2).double()
            hidden[i] += (~mask).double()
    torch.testing.assert_close(total.double(), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(count.double(), hidden)


@pytest.mark.parametrize(
    ("kind", "expected"), [("signed", -2.0), ("absolute", 2.0), ("squared", 4.0)]
)
def test_kinds_of_residual(kind: Any, expected: float) -> None:
    """Signed is what is there less what was imagined: a dark lesion is negative."""
    x = slices()
    cycle = Cycle(identity, forward=lambda x: x + 2, imagine=lambda x, *_: x + 2)  # type: ignore[arg-type]
    total, count = residual(x, band_work(some_brain(), SAMPLING), cycle, residual=kind)
    found = (total / count)[some_brain()]
    torch.testing.assert_close(found, torch.full_like(found, expected))
    plain = plain_residual(x, cycle, residual=kind, execution=CPU)
    torch.testing.assert_close(plain, torch.full_like(x, expected))


@pytest.mark.parametrize("batch_size", [1, 3, 1000])
def test_the_batch_size_does_not_matter(batch_size: int) -> None:
    x, work, cycle = slices(), band_work(some_brain(), SAMPLING), trained_like_cycle()
    expected, count = residual(x, work, cycle)
    assert expected.abs().max() > 0.1
    found, counted = residual(x, work, cycle, replace(CPU, batch_size=batch_size))
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
    assert torch.equal(counted, count)
    plain = plain_residual(x, cycle, residual="signed", execution=CPU)
    other = plain_residual(
        x, cycle, residual="signed", execution=replace(CPU, batch_size=batch_size)
    )
    torch.testing.assert_close(other, plain, atol=1e-5, rtol=1e-5)


def test_order_and_company_do_not_matter() -> None:
    """A slice alone, or last of three in another order of work, has the same residual."""
    x, brain, cycle = slices(), some_brain(), trained_like_cycle()
    work = band_work(brain, SAMPLING)
    expected, _ = residual(x, work, cycle, numbers=torch.tensor([5, 6, 7]))
    shuffled = Work(work.pairs.flip(0), work.masks)
    found, _ = residual(x, shuffled, cycle, numbers=torch.tensor([5, 6, 7]))
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
    alone, _ = residual(x[2:], band_work(brain[2:], SAMPLING), cycle, numbers=torch.tensor([7]))
    torch.testing.assert_close(alone, expected[2:], atol=2e-5, rtol=1e-5)


def noise_of(x: Tensor, work: Work, batch_size: int, seed: int = 0, **options: Any) -> Tensor:
    """(P, 2, H, W), the noise that the translator was given, in the order of the work."""
    given = []

    def imagine(x: Tensor, seen: Tensor, condition_noise: Tensor, start_noise: Tensor) -> Tensor:
        given.append(torch.cat([condition_noise, start_noise], dim=1))
        return x

    residual(
        x, work, fake_cycle(imagine), replace(CPU, batch_size=batch_size), seed=seed, **options
    )
    return torch.cat(given)


def test_every_slice_and_band_has_its_own_noise() -> None:
    x, work = slices(), band_work(some_brain(), SAMPLING)
    noise = noise_of(x, work, 4)
    assert torch.equal(noise, noise_of(x, work, 7))
    assert torch.equal(noise.flip(0), noise_of(x, Work(work.pairs.flip(0), work.masks), 4))
    assert len(noise.flatten(0, 1).unique(dim=0)) == 2 * len(work.pairs)
    assert noise.std() == pytest.approx(1, abs=0.05)
    largest = noise_of(x, work, 4, seed=MAX_SEED - 1, numbers=torch.tensor([1021, 1022, 1023]))
    assert largest.std() == pytest.approx(1, abs=0.05)
    assert not torch.equal(noise, noise_of(x, work, 4, seed=1))
    again = noise_of(x, work, 4, numbers=torch.tensor([1, 2, 3]))
    slice_of, band_of = work.pairs.T
    ours, theirs = ((slice_of == i) & (band_of == band_of[0]) for i in (0, 1))
    assert torch.equal(again[ours], noise[theirs]), "the number of the slice decides, not its place"


# Guards on cost: passes are what this method pays in.


@pytest.mark.parametrize(
    ("changes", "passes"),
    [
        ({"band_width": 16, "band_stride": 2}, 128),
        ({"band_width": 16, "band_stride": 16}, 16),
        ({"band_width": 32, "band_stride": 32}, 8),
    ],
)
def test_passes_of_a_full_slice(changes: dict[str, Any], passes: int) -> None:
    brain = torch.ones(2, 1, 128, 128, dtype=torch.bool)
    work = band_work(brain, replace(SAMPLING, **changes))
    assert len(work.pairs) == 2 * passes


def test_bands_that_hide_no_brain_cost_nothing() -> None:
    brain = torch.zeros(2, 1, 64, 64, dtype=torch.bool)
    brain[0, 0, 17:31, 20:44] = True  # rows 16..31 and columns 16..47 of disjoint bands
    work = band_work(brain, SamplingConfig(band_width=16, band_stride=16))
    assert work.pairs[:, 0].tolist() == [0, 0, 0]
    hidden = ~work.masks[work.pairs[:, 1]]
    assert (hidden & brain[:1]).flatten(1).any(dim=1).all()


def test_each_pair_is_one_pass_and_is_reported_once() -> None:
    passed, reported = [], []

    def imagine(x: Tensor, *_: Tensor) -> Tensor:
        passed.append(len(x))
        return x

    work = band_work(some_brain(), SAMPLING)
    residual(slices(), work, fake_cycle(imagine), replace(CPU, advance=reported.append))
    assert sum(passed) == sum(reported) == len(work.pairs)
    assert max(passed) == CPU.batch_size


def flops_of(compute: Any) -> int:
    counter = FlopCounterMode(display=False)
    with counter:
        compute()
    return int(counter.get_total_flops())


def test_no_operation_is_done_twice() -> None:
    """The engine costs what its passes cost: steps times forward, and backward once a pair.

    The time step is embedded once for all slices of a pass.
    """
    x, work, cycle = slices(), band_work(some_brain(), SAMPLING), trained_like_cycle()
    assert cycle.imagine is not None
    one, t = x[:1], torch.zeros(1, dtype=torch.long)
    network = cycle.imagine.network
    first, both = (
        flops_of(lambda number=number: network(torch.zeros(number, 2, *x.shape[-2:]), t))
        for number in (1, 2)
    )
    denoiser, embedding = both - first, 2 * first - both
    backward = flops_of(lambda: cycle.backward(one))
    assert denoiser > backward > embedding > 0
    pairs, passes = len(work.pairs), -(-len(work.pairs) // CPU.batch_size)
    steps = cycle.imagine.num_inference_steps
    assert flops_of(lambda: residual(x, work, cycle)) == (
        pairs * (steps * denoiser + backward) + passes * steps * embedding
    )
    plain = flops_of(lambda: plain_residual(x, cycle, residual="signed", execution=CPU))
    assert plain == len(x) * 2 * backward


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of all tensors that are made under it and still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        place, size = storage._cdata, storage.nbytes()
        if place in self._known:
            return
        self._known.add(place)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, place, size)

    def _free(self, place: int, size: int) -> None:
        self._known.discard(place)
        self.now -= size


def peak_bytes(n: int, sampling: SamplingConfig, batch_size: int = 2) -> int:
    """Peak of a run of n slices of 64 x 64 with networks that keep nothing."""
    x, brain = slices(n, 64), torch.ones(n, 1, 64, 64, dtype=torch.bool)
    work = band_work(brain, sampling)
    cycle = fake_cycle(lambda x, *_: x)
    with LiveMemory() as memory:
        residual(x, work, cycle, replace(CPU, batch_size=batch_size))
    return memory.peak


def test_memory_does_not_grow_with_the_bands() -> None:
    few, many = (peak_bytes(12, replace(SAMPLING, band_stride=s)) for s in (8, 1))
    assert many < 1.1 * few, "eight times the bands"


def test_accumulators_are_a_sum_and_a_count() -> None:
    """Two float32 images a slice, and nothing else that grows with their number."""
    small, large = (peak_bytes(n, SAMPLING) for n in (8, 40))
    assert (large - small) / 32 == pytest.approx(2 * 4 * 64 * 64, rel=0.05)


def test_a_cycle_without_the_network_is_refused() -> None:
    x, work = slices(), band_work(some_brain(), SAMPLING)
    with pytest.raises(ValueError, match="masked"):
        residual(x, work, Cycle(identity))
    with pytest.raises(ValueError, match="plain"):
        plain_residual(x, Cycle(identity), residual="signed", execution=CPU)


# Memory


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_the_batch_is_halved_until_it_fits(error: Exception) -> None:
    x, work, cycle = slices(), band_work(some_brain(), SAMPLING), trained_like_cycle()
    expected, _ = residual(x, work, cycle)
    tried, reported = [], []

    class Small:
        """Fits three slices, but for the first batch, so that some work is done twice."""

        def __call__(self, x: Tensor, *rest: Tensor) -> Tensor:
            tried.append(len(x))
            if len(x) > 3 and len(tried) > 1:
                raise error
            return cycle.imagine(x, *rest)  # type: ignore[misc]

    found, _ = run_within_memory(
        lambda e: residual(x, work, replace(cycle, imagine=Small()), e),
        replace(CPU, batch_size=8, advance=reported.append),
    )
    assert list(dict.fromkeys(tried))[:3] == [8, 4, 2]
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
    assert sum(reported) == len(work.pairs), "a failed attempt's progress counts once"


def test_a_single_slice_that_does_not_fit_is_an_error() -> None:
    sizes = []

    def compute(execution: Execution) -> None:
        sizes.append(execution.batch_size)
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(ComputeError, match="single slice") as caught:
        run_within_memory(compute, replace(CPU, batch_size=5))
    assert sizes == [5, 2, 1]
    assert caught.value.next_step


def test_other_errors_are_not_taken_for_memory() -> None:
    def compute(execution: Execution) -> None:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        run_within_memory(compute, CPU)


# A device that is not there


def test_memory_is_given_back_once_nothing_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error keeps the tensors of its frames alive; emptied before it is gone, nothing is won."""
    held, alive = [], []

    def empty_cache() -> None:
        gc.collect()
        alive.append(held[-1]() is not None)

    def compute(execution: Execution) -> int:
        large = torch.zeros(execution.batch_size)
        held.append(weakref.ref(large))
        if execution.batch_size > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return execution.batch_size

    monkeypatch.setattr(torch.cuda, "empty_cache", empty_cache)
    assert run_within_memory(compute, Execution(torch.device("cuda:1"), 5)) == 1
    assert alive == [False, False], "once after each failed attempt"


@pytest.mark.parametrize(
    "error",
    [
        getattr(torch, "AcceleratorError", RuntimeError)(
            "CUDA error: an illegal memory access was encountered\nand more"
        ),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling cublasCreate"),
    ],
)
def test_a_device_that_stops_is_no_bug(error: RuntimeError) -> None:
    tried = []

    def compute(execution: Execution) -> None:
        tried.append(execution.batch_size)
        raise error

    with pytest.raises(ComputeError, match="cuda:1 stopped computing") as caught:
        run_within_memory(compute, Execution(torch.device("cuda:1"), 8))
    assert tried == [8], "it is not asked again"
    assert caught.value.exit_code == 5
    assert "and more" not in (caught.value.cause or "")
    assert "--device cpu" in (caught.value.next_step or "")
    with pytest.raises(type(error)):
        run_within_memory(compute, CPU)


def test_memory_that_ends_in_the_middle_changes_no_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the n-th batch, whatever n is: what was added before must not be added again."""
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    x, work, cycle = slices(), band_work(some_brain(), SAMPLING), trained_like_cycle()
    expected, count = residual(x, work, cycle)
    for fatal in range(1, 5):
        calls = itertools.count(1)

        def imagine(*given: Tensor, fatal: int = fatal, calls: Any = calls) -> Tensor:
            if next(calls) == fatal:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return cycle.imagine(*given)  # type: ignore[misc]

        found, counted = run_within_memory(
            lambda e, imagine=imagine: residual(x, work, replace(cycle, imagine=imagine), e), CPU
        )
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
        assert torch.equal(counted, count)


class Pinned:
    """Stands for a tensor on the CPU, and notes what is done with it."""

    def __init__(self) -> None:
        self.done: list[object] = []

    def pin_memory(self) -> Pinned:
        self.done.append("pinned")
        return self

    def to(self, device: torch.device, **how: object) -> Pinned:
        self.done.append((str(device), how))
        return self


def test_copies_are_pinned_and_do_not_wait_for_cuda_alone() -> None:
    there, here = Pinned(), Pinned()
    Execution(torch.device("cuda:2")).take(there)  # type: ignore[arg-type]
    Execution(torch.device("cpu")).take(here)  # type: ignore[arg-type]
    assert there.done == ["pinned", ("cuda:2", {"non_blocking": True})]
    assert here.done == [("cpu", {})]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_pass_in_halves_asks_cuda_for_them(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, autocast = [], torch.autocast

    def noting(device: str, *, dtype: torch.dtype) -> torch.autocast:
        asked.append((device, dtype))
        return autocast("cpu", dtype=torch.bfloat16)

    monkeypatch.setattr(torch, "autocast", noting)
    with Execution(torch.device("cuda:1"), autocast=dtype).passing():
        assert torch.is_inference_mode_enabled()
    assert asked == [("cuda", dtype)]


# CUDA


@pytest.fixture
def cuda() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device("cuda")


def on_cuda(cycle: Cycle, device: torch.device) -> Cycle:
    assert cycle.imagine is not None
    for network in (cycle.backward, cycle.imagine.network):
        network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, union-attr]
    return cycle


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("autocast", "atol"), [(None, 1e-4), (torch.float16, 0.02), (torch.bfloat16, 0.2)]
)
def test_cuda_and_cpu_agree(cuda: torch.device, autocast: torch.dtype | None, atol: float) -> None:
    x, work = slices(), band_work(some_brain(), SAMPLING)
    expected, count = residual(x, work, trained_like_cycle())
    plain = plain_residual(x, trained_like_cycle(), residual="signed", execution=CPU)
    there = on_cuda(trained_like_cycle(), cuda)
    execution = Execution(cuda, 5, autocast)
    found, counted = residual(x, work, there, execution)
    torch.testing.assert_close(found, expected, atol=4 * atol, rtol=0)
    assert torch.equal(counted, count)
    other = plain_residual(x, there, residual="signed", execution=execution)
    torch.testing.assert_close(other, plain, atol=atol, rtol=0)


def test_full_precision_on_cuda_is_not_tf32() -> None:
    before = torch.backends.cudnn.allow_tf32
    with Execution(torch.device("cuda")).passing():
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32 == before


@pytest.mark.gpu
def test_copies_to_cuda_do_not_wait(cuda: torch.device) -> None:
    """The whole queue is filled while the device is still busy with something else."""
    x, work, cycle = slices(), band_work(some_brain(), SAMPLING), fake_cycle(lambda x, *_: x)
    residual(x, work, cycle, Execution(cuda, 5))
    torch.cuda.synchronize()
    ready, queued = torch.cuda.Event(), []
    torch.cuda._sleep(2_000_000_000)
    ready.record()
    advance = lambda count: queued.append(ready.query())  # noqa: E731
    residual(x, work, cycle, Execution(cuda, 5, advance=advance))
    assert queued[-1] is False
