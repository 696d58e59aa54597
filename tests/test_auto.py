"""transformers' Auto classes open a Pixel-BERT folder after a mere `import pixelbert`, whatever is imported first.

The order of imports is tried on a stand-in for transformers, a few lines with the same module names and registries (the
real one takes seconds to import); then the real Auto classes open a real folder.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import pixelbert

STAND_IN = {
    "transformers/__init__.py": "from transformers.base import Config\n",
    "transformers/base.py": """
class Config:
    model_type = ""
class Auto:
    @classmethod
    def from_config(cls, config):
        return cls.known[type(config)]
    @classmethod
    def from_pretrained(cls, folder):
        from transformers.models.auto.configuration_auto import AutoConfig
        return cls.from_config(AutoConfig.from_pretrained(folder))
    @classmethod
    def register(cls, config, model, exist_ok=False):
        cls.known[config] = model
""",
    "transformers/models/__init__.py": "",
    "transformers/models/auto/__init__.py": "",
    "transformers/models/auto/configuration_auto.py": """
class AutoConfig:
    known = {}
    @classmethod
    def from_pretrained(cls, folder):
        return cls.known[folder]()
    @staticmethod
    def for_model(name):
        return AutoConfig.known[name]()
    @staticmethod
    def register(name, config, exist_ok=False):
        AutoConfig.known[name] = config
""",
    "transformers/models/auto/modeling_auto.py": """
from transformers.base import Auto
class AutoModel(Auto):
    known = {}
class AutoModelForVisualQuestionAnswering(Auto):
    known = {}
class AutoModelForPreTraining(Auto):
    known = {}
    from_config = classmethod(Auto.from_config.__func__)     # its own, as transformers gives some classes
""",
    "transformers/models/auto/processing_auto.py": """
from transformers.base import Auto
class AutoProcessor(Auto):
    known = {}
""",
    "transformers/models/auto/image_processing_auto.py": """
from transformers.base import Auto
class AutoImageProcessor(Auto):
    known = {}
""",
    # Loads an Auto module in the middle of its own import, as transformers' modeling modules do.
    "transformers/bert.py": "import transformers.models.auto.modeling_auto\nclass BertModel: pass\n",
    # Stand-ins for our own modules, which need the real transformers.
    "ours.py": """
import sys, types
def module(name, **values):
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(values)
class PixelBertConfig:
    model_type = "pixelbert"
names = "PixelBertModel", "PixelBertForPreTraining", "PixelBertProcessor", "PixelBertImageProcessor"
classes = {name: type(name, (), {}) for name in names}
module("pixelbert.model.config", PixelBertConfig=PixelBertConfig)
module("pixelbert.model.modeling", **classes)
module("pixelbert.model.heads", PixelBertForQuestionAnswering=type("PixelBertForQuestionAnswering", (), {}))
module("pixelbert.model.processor", **classes)
""",
}
CONFIG = "from transformers.models.auto.configuration_auto import AutoConfig\n"
MODEL = "from transformers.models.auto.modeling_auto import AutoModel, AutoModelForPreTraining\n"
PROCESSOR = "from transformers.models.auto.processing_auto import AutoProcessor\n"
IMAGES = "from transformers.models.auto.image_processing_auto import AutoImageProcessor\n"
BERT = "from transformers.bert import BertModel\n"
OURS = "import pixelbert, ours\n"


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stand_in")
    for name, text in STAND_IN.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def run(folder: Path, code: str) -> str:
    """What a fresh Python prints that finds the stand-ins first; a warning of ours is an error."""
    package = Path(pixelbert.__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(package)])}
    command = [sys.executable, "-W", "error:pixelbert", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "imports",
    [
        OURS + CONFIG + MODEL + PROCESSOR + IMAGES,
        CONFIG + MODEL + PROCESSOR + OURS,
        CONFIG + OURS + MODEL + PROCESSOR,
        BERT + OURS + CONFIG + MODEL + PROCESSOR,
        OURS + BERT + PROCESSOR + MODEL + CONFIG,
        OURS + OURS + CONFIG + "import pixelbert.auto as a; a.install(); a.install()\n" + MODEL + PROCESSOR,
    ],
)
@pytest.mark.parametrize("first", ["AutoConfig", "AutoModel", "AutoModelForPreTraining", "AutoProcessor"])
def test_any_order_of_imports_and_of_first_use(stand_in, imports, first):
    use = f"{first}.from_pretrained('pixelbert')\n"
    names = "AutoModel, AutoModelForPreTraining, AutoProcessor"
    report = f"print(*[auto.from_pretrained('pixelbert').__name__ for auto in ({names})])"
    report += "\nprint(type(AutoConfig.for_model('pixelbert')).__name__)"
    found = run(stand_in, imports + use + report).split()
    assert found == ["PixelBertModel", "PixelBertForPreTraining", "PixelBertProcessor", "PixelBertConfig"]


def test_nothing_is_left_behind_after_first_use(stand_in):
    code = f"""
{CONFIG}{MODEL}{PROCESSOR}{IMAGES}
autos = AutoConfig, AutoModel, AutoModelForPreTraining, AutoProcessor, AutoImageProcessor
before = [dict(vars(auto)) for auto in autos]
import sys
{OURS}
from pixelbert.auto import _Watcher
during = [dict(vars(auto)) for auto in autos]
for auto in autos:
    auto.from_pretrained("pixelbert")
after = [dict(vars(auto)) for auto in autos]
print(before == after, before == during, any(isinstance(finder, _Watcher) for finder in sys.meta_path))
"""
    assert run(stand_in, code) == "True False False"


def test_a_watched_module_looks_as_if_nothing_had_been_there(stand_in):
    code = f"""
{OURS}{CONFIG}
import importlib, inspect, transformers.models.auto.configuration_auto as module
print(type(module.__loader__).__name__, module.__spec__.loader is module.__loader__)
print("class AutoConfig" in inspect.getsource(module))
importlib.reload(module)
"""
    assert run(stand_in, code).split() == ["SourceFileLoader", "True", "True"]


def test_a_broken_model_module_is_a_warning_not_an_error(stand_in):
    code = f"""
{OURS}{MODEL}
import sys, warnings
sys.modules["pixelbert.model.modeling"] = None      # importing it now fails
class Other: pass
AutoModel.known[Other] = "other"
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    print(AutoModel.from_config(Other()), AutoModel.from_config(Other()))
print([str(w.message).partition(" (")[0] for w in seen])
"""
    assert run(stand_in, code) == "other other\n['pixelbert: AutoModel does not know PixelBertModel']"


def test_a_missing_transformers_fails_as_it_would_without_us(tmp_path):
    (tmp_path / "transformers").mkdir()
    (tmp_path / "transformers" / "__init__.py").write_text("")
    code = """
import pixelbert
try:
    import transformers.models.auto.modeling_auto
except ModuleNotFoundError as error:
    print(error.name)
"""
    assert run(tmp_path, code) == "transformers.models"


def test_many_threads_may_be_the_first(stand_in):
    code = f"""
{OURS}{CONFIG}{MODEL}
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(8) as pool:
    print(*{{c.__name__ for c in pool.map(lambda _: AutoModel.from_pretrained("pixelbert"), range(32))}})
"""
    assert run(stand_in, code) == "PixelBertModel"


def test_real_model_through_the_real_auto_classes(tmp_path):
    import torch
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForPreTraining,
        AutoModelForVisualQuestionAnswering,
        BertConfig,
    )

    text = BertConfig(vocab_size=40, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    config = pixelbert.PixelBertConfig(text_config=text, backbone="resnet10t", visual_pool=False)
    model = pixelbert.PixelBertForPreTraining(config)
    model.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is pixelbert.PixelBertConfig
    assert type(AutoModel.from_pretrained(tmp_path)) is pixelbert.PixelBertModel
    again = AutoModelForPreTraining.from_pretrained(tmp_path)
    assert type(again) is pixelbert.PixelBertForPreTraining
    theirs = again.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in model.state_dict().items())
    config.id2label = {0: "yes", 1: "no", 2: "red"}
    asked = pixelbert.PixelBertForQuestionAnswering(config)
    asked.save_pretrained(tmp_path / "vqa")
    again = AutoModelForVisualQuestionAnswering.from_pretrained(tmp_path / "vqa")
    assert type(again) is pixelbert.PixelBertForQuestionAnswering
    assert again.config.id2label == config.id2label
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in asked.state_dict().items())
    for name in ("PixelBertForImagesAndTextClassification", "PixelBertForImageAndTextRetrieval"):
        head = getattr(pixelbert, name)  # these have no Auto class
        head(config).save_pretrained(tmp_path / name)
        assert type(head.from_pretrained(tmp_path / name)) is head


def test_real_processor_through_the_real_auto_class(tmp_path):
    from transformers import AutoImageProcessor, AutoProcessor

    from pixelbert.model.processor import PixelBertImageProcessor
    from pixelbert.model.tokenization import load_tokenizer

    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\ndog\n")
    pixelbert.PixelBertProcessor(PixelBertImageProcessor(), load_tokenizer(vocabulary)).save_pretrained(
        tmp_path / "run"
    )
    processor = AutoProcessor.from_pretrained(tmp_path / "run")
    assert type(processor) is pixelbert.PixelBertProcessor
    assert list(processor(text=["a dog"])["input_ids"][0]) == [2, 5, 6, 3]
    assert type(AutoImageProcessor.from_pretrained(tmp_path / "run")) is PixelBertImageProcessor
