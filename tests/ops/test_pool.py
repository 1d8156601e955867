import gc
import os
import threading
from pathlib import Path

import pytest
import torch

from lowres_vision.ops import output_pool
from lowres_vision.ops._resize.pool import OutputPool

MB = 1 << 20
SHAPE = (4, 3, 512, 512)  # 12 MB of float32


@pytest.fixture
def pool():
    return OutputPool(limit=64 * MB)


def empty(pool, shape=SHAPE, dtype=torch.float32, channels_last=False):
    return pool.empty(shape, dtype, channels_last=channels_last)


def test_memory_comes_back_when_the_last_user_is_gone(pool):
    tensor = empty(pool)
    address = tensor.data_ptr()
    view = tensor[1:, :1].float()[..., 3]
    del tensor
    assert pool.idle == 0
    view.fill_(1.0)
    del view
    assert pool.idle >= 12 * MB
    assert empty(pool).data_ptr() == address


def test_memory_stays_while_saved_for_backward(pool):
    weight = torch.ones(1, requires_grad=True)
    tensor = empty(pool).fill_(2.0)
    loss = (weight * tensor).sum()
    del tensor
    assert pool.idle == 0
    loss.backward()
    assert weight.grad.item() == 2.0 * torch.Size(SHAPE).numel()
    del loss
    assert pool.idle >= 12 * MB


def test_two_live_tensors_never_share(pool):
    first, second = empty(pool).fill_(1.0), empty(pool).fill_(2.0)
    assert first.eq(1.0).all()
    assert second.eq(2.0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_shape_and_layout(pool, dtype, channels_last):
    tensor = empty(pool, (5, 3, 701, 401), dtype, channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert tensor.shape == (5, 3, 701, 401)
    assert tensor.dtype == dtype
    assert tensor.is_contiguous(memory_format=layout)
    assert tensor.data_ptr() % (2 * MB) == 0


def test_what_is_kept_stays_below_the_limit(pool):
    tensors = [empty(pool) for _ in range(9)]
    last = tensors[-1].data_ptr()
    while tensors:
        tensors.pop(0)
    gc.collect()
    assert 0 < pool.idle <= 64 * MB
    assert empty(pool).data_ptr() == last  # the oldest went


def test_clear_leaves_live_tensors_alone(pool):
    live, dead = empty(pool).fill_(3.0), empty(pool)
    del dead
    pool.clear()
    assert pool.idle == 0
    assert live.eq(3.0).all()
    del live
    assert pool.idle > 0


def test_a_limit_of_zero_turns_it_off(pool):
    pool.limit = 0
    tensor = empty(pool)
    del tensor
    assert pool.idle == 0


def test_small_results_are_plain_tensors(pool):
    tensor = empty(pool, (1, 3, 64, 64))
    del tensor
    assert pool.idle == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_forked_child_writes_into_memory_of_its_own(pool):
    tensor = empty(pool).fill_(1.0)
    child = os.fork()
    if child == 0:
        tensor.numpy()[:] = 2.0  # no thread of torch's survives a fork
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert tensor.eq(1.0).all()


def _huge_pages_are_to_be_had():
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return setting.exists() and "[never]" not in setting.read_text()


@pytest.mark.skipif(not _huge_pages_are_to_be_had(), reason="needs Linux with huge pages")
def test_blocks_lie_in_huge_pages(pool):
    tensor = empty(pool).fill_(1.0)
    kilobytes = 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, _, second = line.partition(" ")[0].partition("-")
        if second:
            inside = int(first, 16) <= tensor.data_ptr() < int(second, 16)
        elif first == "AnonHugePages:" and inside:
            kilobytes = int(line.split()[1])
    # The kernel may be short of whole huge pages, but hardly of every one of six.
    assert kilobytes >= 2048


def test_many_threads(pool):
    wrong = []

    def work(value):
        for _ in range(40):
            tensor = empty(pool, (2, 1, 1024, 1024)).fill_(value)
            if not tensor.eq(value).all():
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert pool.idle <= pool.limit


def test_the_shared_pool_is_bounded():
    assert 0 < output_pool.limit <= 1 << 30
