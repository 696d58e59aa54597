"""Our own folders: what transformers would only warn of is an error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import (
    tiny_config,
)

from pixelbert.errors import CheckpointError
from pixelbert.model.modeling import PixelBertForPreTraining, PixelBertModel
from pixelbert.model.weights import (
    load_pretrained,
)

# -- our own folders ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(5)
    PixelBertForPreTraining(tiny_config()).save_pretrained(folder)
    return folder


def changed_copy(saved: Path, folder: Path, change: Any) -> Path:
    from safetensors.torch import load_file

    state = load_file(saved / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text((saved / "config.json").read_text())
    return folder


def test_a_saved_model_is_loaded(saved: Path) -> None:
    model = load_pretrained(PixelBertForPreTraining, saved)
    assert type(model) is PixelBertForPreTraining
    assert type(load_pretrained(PixelBertModel, saved, fresh=("mlm_head.", "itm_head."))) is PixelBertModel


def test_a_checkpoint_of_another_shape_is_an_error(saved: Path, tmp_path: Path) -> None:
    changed_copy(saved, tmp_path, lambda state: None)
    config = json.loads((saved / "config.json").read_text())
    config["text_config"]["hidden_size"] = 64
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        CheckpointError, match=r"does not fit PixelBertForPreTraining: \d+ tensors of another shape: "
    ) as e:
        load_pretrained(PixelBertForPreTraining, tmp_path)
    assert "[2, 32] instead of [2, 64]" in str(e.value) or "instead of" in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "key", ["itm_head.weight", "pixelbert.pixels.type_embedding", "pixelbert.visual.body.layer1.0.conv1.weight"]
)
def test_a_missing_tensor_is_an_error_and_not_a_random_start(key: str, saved: Path, tmp_path: Path) -> None:
    changed_copy(saved, tmp_path, lambda state: state.pop(key))
    with pytest.raises(CheckpointError, match=f"1 tensors missing: {key}"):
        load_pretrained(PixelBertForPreTraining, tmp_path)
    load_pretrained(PixelBertForPreTraining, tmp_path, fresh=(key,))


def test_an_unknown_tensor_is_an_error(saved: Path, tmp_path: Path) -> None:
    changed_copy(saved, tmp_path, lambda state: state.update({"answer_head.weight": torch.zeros(2)}))
    with pytest.raises(CheckpointError, match=r"1 tensors unknown: answer_head\.weight"):
        load_pretrained(PixelBertForPreTraining, tmp_path)
    load_pretrained(PixelBertForPreTraining, tmp_path, fresh=("answer_head.",))


def test_damaged_folders(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no model here"):
        load_pretrained(PixelBertForPreTraining, tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match="a model of type 'bert', expected 'pixelbert'"):
        load_pretrained(PixelBertForPreTraining, tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        load_pretrained(PixelBertForPreTraining, tmp_path)
    (tmp_path / "config.json").write_text((saved / "config.json").read_text())
    for content in (b"", (saved / "model.safetensors").read_bytes()[:5000], None):
        (tmp_path / "model.safetensors").unlink(missing_ok=True)
        if content is not None:
            (tmp_path / "model.safetensors").write_bytes(content)
        with pytest.raises(CheckpointError, match="cannot be loaded") as caught:
            load_pretrained(PixelBertForPreTraining, tmp_path)
        assert "\n" not in str(caught.value)
