"""BERT-shaped encoders from files, folders and the hub."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import (
    TEXT,
    random_resnet18,
    randomise,
    snapshot,
    tiny_config,
    tiny_core,
    unchanged,
)
from torch import Tensor, nn
from transformers import BertConfig, BertForPreTraining, BertModel

from pixelbert.errors import CheckpointError, UsageError
from pixelbert.model.modeling import PixelBertForPreTraining
from pixelbert.model.weights import (
    WrongWeightsError,
    load_text_weights,
    text_config_from,
    vocab_of,
)


@pytest.fixture(scope="module")
def resnet18() -> nn.Module:
    return random_resnet18()


# -- text encoders -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bert() -> BertForPreTraining:
    torch.manual_seed(4)
    model = BertForPreTraining(BertConfig(**TEXT)).eval()
    randomise(model)
    return model


def old_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As the first BERT files for PyTorch had them."""
    return {
        key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for key, value in state.items()
    }


@pytest.mark.parametrize("names", ["whole", "old", "bare", "module", "sentence"])
@pytest.mark.parametrize("kind", ["folder", "bin", "file"])
def test_berts_weights_give_berts_states_and_its_masked_word_scores(
    names: str, kind: str, bert: BertForPreTraining, tmp_path: Path
) -> None:
    state = {key: value.clone() for key, value in bert.state_dict().items()}
    state = {
        "whole": state,
        "old": old_names(state),
        "bare": {key.removeprefix("bert."): v for key, v in state.items() if key.startswith("bert.")},
        "module": {f"module.{key}": value for key, value in state.items()},
        "sentence": {f"0.auto_model.{k.removeprefix('bert.')}": v for k, v in state.items() if k.startswith("bert.")},
    }[names]
    if kind == "bin":
        torch.save(state, tmp_path / "pytorch_model.bin")
    else:
        save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(bert.config.to_json_string(use_diff=False))
    source = str(tmp_path / "model.safetensors" if kind == "file" else tmp_path)
    settings = text_config_from(source)
    assert {key: settings[key] for key in TEXT} == TEXT
    torch.manual_seed(0)
    model = PixelBertForPreTraining(tiny_config()).eval()
    report = load_text_weights(model, source)
    ids, mask = torch.tensor([[5, 6, 7, 8]]), torch.tensor([[1, 1, 1, 0]])
    has_head = names in ("whole", "old", "module")
    with torch.no_grad():
        expected, output = bert(ids, attention_mask=mask, output_hidden_states=True), model(ids, attention_mask=mask)
        assert torch.allclose(output.last_hidden_state[:, :3], expected.hidden_states[-1][:, :3], atol=1e-5)
        if has_head:
            assert torch.allclose(output.mlm_logits[:, :3], expected.prediction_logits[:, :3], atol=1e-4)
    assert model.mlm_head.decoder.weight is model.pixelbert.text.embeddings.word_embeddings.weight
    types = bert.bert.embeddings.token_type_embeddings.weight
    assert torch.equal(model.pixelbert.pixels.type_embedding, types[1])
    assert len(report.missing) == (0 if has_head else 5)
    assert all(key.startswith("mlm_head.") for key in report.missing)
    assert all("pooler" in key or "cls." in key for key in report.unused)


def test_s_v_may_stay_random(bert: BertForPreTraining, tmp_path: Path) -> None:
    torch.save(bert.state_dict(), tmp_path / "bert.bin")
    model = tiny_core()
    before = model.pixels.type_embedding.clone()
    load_text_weights(model, str(tmp_path / "bert.bin"), type_embedding_init="random")
    assert torch.equal(model.pixels.type_embedding, before)
    with pytest.raises(UsageError, match="did you mean 'random'"):
        load_text_weights(model, str(tmp_path / "bert.bin"), type_embedding_init="randm")


def test_wrong_text_weights_are_refused(bert: BertForPreTraining, resnet18: nn.Module, tmp_path: Path) -> None:
    cases = {
        "cnn": (resnet18.state_dict(), "of which 0 belong to it"),
        "vocabulary": (
            BertModel(BertConfig(**{**TEXT, "vocab_size": 61})).state_dict(),
            r"embeddings\.word_embeddings\.weight \[61, 32\] instead of \[60, 32\]",
        ),
        "deeper": (
            BertModel(BertConfig(**{**TEXT, "num_hidden_layers": 3})).state_dict(),
            r"of a larger network: encoder\.layer\.2\.",
        ),
        "shallower": (
            BertModel(BertConfig(**{**TEXT, "num_hidden_layers": 1})).state_dict(),
            r"are missing: encoder\.layer\.1\.",
        ),
    }
    model = PixelBertForPreTraining(tiny_config())
    before = snapshot(model)
    for name, (state, sentence) in cases.items():
        torch.save(state, tmp_path / f"{name}.bin")
        with pytest.raises(WrongWeightsError, match=sentence) as caught:
            load_text_weights(model, str(tmp_path / f"{name}.bin"))
        assert str(caught.value).startswith(f"{tmp_path / name}.bin: not the weights of the text encoder: ")
        assert unchanged(model, before)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model_type": "roberta"}, "an encoder of type 'roberta', which is not BERT-shaped"),
        ({"model_type": "electra", "embedding_size": 16}, "not BERT-shaped"),
        ({"position_embedding_type": "relative_key"}, "relative positions"),
    ],
)
def test_an_encoder_of_another_shape_is_refused(change: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**BertConfig(**TEXT).to_dict(), **change}))
    with pytest.raises(UsageError, match=sentence):
        text_config_from(str(tmp_path))
    save_file({k: v.contiguous() for k, v in BertModel(BertConfig(**TEXT)).state_dict().items()},
              tmp_path / "model.safetensors")  # fmt: skip
    with pytest.raises(UsageError, match=sentence):
        load_text_weights(tiny_core(), str(tmp_path))


def test_an_encoder_in_several_files_is_the_encoder_in_one(bert: BertForPreTraining, tmp_path: Path) -> None:
    for name, size in (("one", "1GB"), ("parts", "20KB")):
        bert.bert.save_pretrained(tmp_path / name, max_shard_size=size)
    shutil.copytree(tmp_path / "parts", tmp_path / "bins")
    index = json.loads((tmp_path / "bins" / "model.safetensors.index.json").read_text())
    for path in (tmp_path / "bins").glob("model*"):
        if path.suffix == ".safetensors":
            torch.save(load_file(path), path.with_suffix(".bin"))
        path.unlink()
    index["weight_map"] = {key: f"{name.removesuffix('.safetensors')}.bin" for key, name in index["weight_map"].items()}
    (tmp_path / "bins" / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    one, parts, bins = (snapshot(_loaded(tmp_path / name)) for name in ("one", "parts", "bins"))
    assert all(torch.equal(one[key], parts[key]) and torch.equal(one[key], bins[key]) for key in one)
    next((tmp_path / "parts").glob("model-00001*")).unlink()
    with pytest.raises(CheckpointError, match=r"index\.json: names 'model-00001-of-.*', which is not there"):
        _loaded(tmp_path / "parts")


def _loaded(folder: Path) -> Any:
    model = tiny_core()
    load_text_weights(model, str(folder))
    return model


def test_weights_that_are_no_numbers_are_refused(bert: BertForPreTraining, tmp_path: Path) -> None:
    state = {key: value.clone() for key, value in bert.bert.state_dict().items()}
    state["encoder.layer.1.output.dense.bias"][3] = float("nan")
    torch.save(state, tmp_path / "broken.bin")
    with pytest.raises(
        WrongWeightsError, match=r"1 tensors hold numbers that are infinite or not a number: encoder\.layer\.1\.output"
    ):
        load_text_weights(tiny_core(), str(tmp_path / "broken.bin"))


def test_text_folders_that_lack_something(tmp_path: Path) -> None:
    for call, sentence in (
        (text_config_from, "has no config.json"),
        (vocab_of, "has no vocab.txt"),
        (lambda source: load_text_weights(tiny_core(), source), "has neither model.safetensors nor pytorch_model.bin"),
    ):
        with pytest.raises(UsageError, match=sentence):
            call(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert", ')
    with pytest.raises(CheckpointError, match=r"config\.json: not valid JSON"):
        text_config_from(str(tmp_path))


def test_a_hub_name_without_a_hub_is_one_sentence() -> None:
    for call in (text_config_from, vocab_of, lambda source: load_text_weights(tiny_core(), source)):
        with pytest.raises(
            UsageError, match=r"^nobody/no-such-bert: no such file or folder, and the hub does not"
        ) as caught:
            call("nobody/no-such-bert")
        assert "\n" not in str(caught.value)


def test_a_hub_name_is_read_from_the_hubs_cache(
    bert: BertForPreTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache as a download leaves it; conftest.py forbids the network."""
    snapshot_folder = tmp_path / "models--some--bert" / "snapshots" / "0123abcd"
    snapshot_folder.mkdir(parents=True)
    (tmp_path / "models--some--bert" / "refs").mkdir()
    (tmp_path / "models--some--bert" / "refs" / "main").write_text("0123abcd")
    save_file({k: v.clone() for k, v in bert.state_dict().items()}, snapshot_folder / "model.safetensors")
    (snapshot_folder / "config.json").write_text(bert.config.to_json_string(use_diff=False))
    (snapshot_folder / "vocab.txt").write_text("[PAD]\n")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    model = tiny_core()
    report = load_text_weights(model, "some/bert")
    assert torch.equal(model.text.embeddings.word_embeddings.weight, bert.bert.embeddings.word_embeddings.weight)
    assert not report.missing
    assert text_config_from("hub:some/bert")["hidden_size"] == 32
    assert vocab_of("some/bert") == snapshot_folder / "vocab.txt"
