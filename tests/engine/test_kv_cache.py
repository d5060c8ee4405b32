"""The slot cache: storage is allocated once, and moving a slot or a path keeps its keys and values."""

from __future__ import annotations

import torch

from specpilot.engine import Engine, EngineConfig, Pair, SamplingParams
from specpilot.engine.kv_cache import KVCache
from specpilot.engine.model_drafter import ModelDrafter

from ..support.controllers import RandomController


def filled_cache() -> KVCache:
    cache = KVCache(2, 4, 10, 2, 3, torch.float32, torch.device("cpu"))
    for layer, storage in enumerate(cache.layers):
        storage.copy_(torch.arange(storage.numel()).view(storage.shape) + 1000 * layer)
    return cache


def test_write_then_view_gives_keys_and_values_back() -> None:
    cache = KVCache(1, 3, 5, 2, 4, torch.float32, torch.device("cpu"))
    new = torch.randn(3, 4, 4)  # keys of two heads, then values of two heads
    cache.write(0, torch.tensor([5, 6, 11]), new)
    key, value = cache.view(0, first=1, rows=2, length=5)
    assert key.shape == value.shape == (2, 2, 5, 4)
    assert torch.equal(key[0, :, 0], new[0, :2]) and torch.equal(value[0, :, 1], new[1, 2:])
    assert torch.equal(key[1, :, 1], new[2, :2])
    assert key.data_ptr() == cache.layers[0][1].data_ptr(), "a view must not copy"
    assert not cache.layers[0][0].any()


def test_moving_a_slot_copies_its_tokens_and_no_others() -> None:
    cache = filled_cache()
    before = [layer.clone() for layer in cache.layers]
    cache.move_slot(3, 1, 6)
    for layer, old in zip(cache.layers, before, strict=True):
        assert torch.equal(layer[1, :6], old[3, :6])
        assert torch.equal(layer[1, 6:], old[1, 6:])
        assert torch.equal(layer[[0, 2, 3]], old[[0, 2, 3]])


def test_moving_an_accepted_path_keeps_its_order_even_where_it_overlaps() -> None:
    cache = filled_cache()
    before = [layer.clone() for layer in cache.layers]
    cache.move_tokens(2, [4, 6, 9], 3)
    for layer, old in zip(cache.layers, before, strict=True):
        assert torch.equal(layer[2, 3:6], old[2, [4, 6, 9]])
        assert torch.equal(layer[2, :3], old[2, :3]) and torch.equal(layer[2, 6:], old[2, 6:])
        assert torch.equal(layer[[0, 1, 3]], old[[0, 1, 3]])


def test_size_is_that_of_the_storage() -> None:
    cache = filled_cache()
    assert cache.num_bytes == 2 * 4 * 10 * 2 * 2 * 3 * 4  # layers, slots, tokens, key and value, heads, width, bytes


def test_storage_stays_where_it_is_through_many_rounds(tiny_pair: Pair) -> None:
    config = EngineConfig(max_num_seqs=4, max_model_len=96, num_candidates=2)
    engine = Engine(tiny_pair, config, RandomController(seed=0))
    assert isinstance(engine.drafter, ModelDrafter)
    caches = (engine.cache, engine.drafter.cache)
    addresses = [layer.data_ptr() for cache in caches for layer in cache.layers]
    params = [SamplingParams(temperature=index % 2, seed=index, max_tokens=20 + index) for index in range(24)]
    engine.generate([[1 + index, 5, 6, 7] for index in range(24)], params)
    assert engine.stats.num_rounds > 50
    assert [layer.data_ptr() for cache in caches for layer in cache.layers] == addresses
    assert engine.stats.kv_cache_bytes == sum(cache.num_bytes for cache in caches)
