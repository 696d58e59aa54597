"""What training asks of the network beside its weights."""

from __future__ import annotations

import pytest

from pixelbert.training.setup import recompute_activations


@pytest.mark.parametrize("name", ["activation_checkpointing_enable", "gradient_checkpointing_enable"])
def test_activations_are_recomputed_by_whatever_name_transformers_has_for_it(name: str) -> None:
    class OfOneName:  # transformers 5.2 knows the older name alone, its version 6 the newer
        called = 0

        def enable(self) -> None:
            self.called += 1

    setattr(OfOneName, name, OfOneName.enable)
    model = OfOneName()
    recompute_activations(model)
    assert model.called == 1
