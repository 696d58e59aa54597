"""Draws that belong to a record: a function of their key alone."""

from __future__ import annotations

import itertools
import zlib

import numpy as np
import pytest

from pixelbert.data.draws import generator, seed_of


def test_a_draw_depends_on_its_key_alone() -> None:
    first = generator(7, "mask", 3, 11).random(5)
    np.random.seed(0)
    np.random.random(100)
    generator(7, "mask", 3, 11).random(1000)
    assert (generator(7, "mask", 3, 11).random(5) == first).all()


def test_draws_are_those_of_philox_keyed_by_seed_and_purpose() -> None:
    # the lowest word of the counter is left to the numbers drawn
    key = np.array([7, zlib.crc32(b"mask")], np.uint64)
    expected = np.random.Generator(np.random.Philox(key=key, counter=np.array([0, 3, 11, 0], np.uint64))).random(4)
    assert (generator(7, "mask", 3, 11).random(4) == expected).all()


def test_every_part_of_the_key_counts() -> None:
    keys = [(s, p, e, r) for s, p, e, r in itertools.product((0, 1, -1), ("mask", "pixels"), (0, 1), (0, 1, 2**40))]
    numbers = [generator(*key).random() for key in keys]
    assert len(set(numbers)) == len(keys)
    assert len({seed_of(*key) for key in keys}) == len(keys)


def test_long_draws_do_not_run_into_the_next_record() -> None:
    a, b = generator(0, "order", 0, 0).random(100_000), generator(0, "order", 0, 1).random(100_000)
    assert len(np.intersect1d(a, b)) < 5


def test_numbers_of_neighbouring_records_are_uniform_and_uncorrelated() -> None:
    values = np.array([generator(0, "mask", 0, record).random(2) for record in range(4000)])
    assert abs(values.mean(0) - 0.5).max() < 0.02
    assert abs(np.corrcoef(values[:-1, 0], values[1:, 0])[0, 1]) < 0.06
    assert abs(np.corrcoef(values.T)[0, 1]) < 0.06


def test_a_seed_is_a_small_non_negative_number() -> None:
    seeds = [seed_of(0, "pixels", 0, record) for record in range(2000)]
    assert min(seeds) >= 0
    assert max(seeds) < 2**31
    assert max(seeds) > 2**30


def test_more_counters_than_the_key_holds_are_refused() -> None:
    with pytest.raises(ValueError):
        generator(0, "mask", 1, 2, 3, 4)
