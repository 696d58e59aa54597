"""The command line: quick help, exit codes, one sentence on stderr, names suggested, how to resume."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pixelbert import __version__, cli
from pixelbert.errors import CheckpointError, DataError, MachineError, TrainingStopped, UsageError

VERBS = ("doctor", "recipes", "prepare", "train", "evaluate", "predict", "bench", "quickstart")
TRAIN = ["train", "pretrain-tiny", "--data", "D", "--out", "R"]


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch):
    """`fails(error)` makes the work behind `pixelbert train` raise `error`."""

    def arrange(error: BaseException) -> None:
        def work(*args: object, **kwargs: object) -> None:
            raise error

        loop = type(sys)("pixelbert.training.loop")
        loop.train = work
        monkeypatch.setitem(sys.modules, "pixelbert.training.loop", loop)

    return arrange


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_help_of_every_verb_loads_nothing_heavy():
    code = f"""
import contextlib, io, sys
from pixelbert.__main__ import main
for verb in ((), *[(v,) for v in {VERBS!r}]):
    with contextlib.redirect_stdout(io.StringIO()) as text:
        assert main_with([*verb, "--help"]) == 0, verb
    assert "Usage: pixelbert" in text.getvalue(), verb
heavy = ("torch", "transformers", "timm", "torchvision", "pyarrow", "pydantic", "numpy", "PIL", "yaml", "jinja2")
print([name for name in heavy if name in sys.modules])
""".replace("from pixelbert.__main__ import main", "from pixelbert.cli import main as main_with")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    heavy = done.stdout.strip()
    assert heavy in ("[]", "['pydantic']")  # some versions of typer import pydantic themselves


def test_help_lists_the_verbs(capsys):
    code, out, err = call(capsys, "--help")
    assert code == 0
    assert err == ""
    assert all(verb in out for verb in VERBS)
    assert call(capsys)[1] == out  # no arguments: the same


def test_version(capsys):
    assert call(capsys, "--version") == (0, f"pixelbert {__version__}\n", "")


def test_python_dash_m(tmp_path):
    command = [sys.executable, "-m", "pixelbert", "--version"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"pixelbert {__version__}\n")
    command[-1:] = ["prepare", "nonsense", str(tmp_path), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["trian"], "no such command 'trian'; did you mean 'train'?"),
        (["xyzzy"], "no such command 'xyzzy'; valid names: "),
        (["--jsn"], "no such option '--jsn'"),
        (["doctor", "--jsn"], "doctor: no such option '--jsn'; did you mean '--json'?"),
        (["train", "pretrain-tiny", "--dta", "x"], "train: no such option '--dta'; did you mean '--data'?"),
        (["train", "pretrain-tiny", "--epochs", "3"], "a change to the recipe is written schedule.epochs=VALUE"),
        (["ablate", "--batch-size", "3"], "written optim.batch_size=VALUE or validation.batch_size=VALUE"),
        (["train"], "train: missing argument 'RECIPE'"),
        (["train", "pretrain-tiny", "--out", "R"], "train: missing option '--data'"),
        (["recipes", "pretrain-tinny"], "did you mean 'pretrain-tiny'?"),
        (["recipes", "a", "b"], "recipes: got unexpected extra argument"),
        (["prepare", "csv", "x", "--out", "o", "--max-bad", "many"], "prepare: invalid value for '--max-bad'"),
        (["prepare", "csv", "x", "--out", "o", "--max-bad", "-3"], "prepare: invalid value for '--max-bad'"),
        (["prepare", "csv", "x", "--out", "o", "--column", "image"], "--column image: expected OURS=THEIRS"),
        (["prepare", "csv", "x"], "prepare: missing option '--out'"),
        (["prepare", "cvs", "x", "--dry-run"], "unknown format 'cvs'; did you mean 'csv'?"),
        (["prepare", "cvs", "x", "--out", "o"], "unknown format 'cvs'; did you mean 'csv'?"),
    ],
)
def test_a_wrong_command_is_one_sentence_with_the_nearest_name(capsys, arguments, expected):
    code, out, err = call(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("pixelbert: ")
    assert expected in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("change", ["optim.batch_sise=8", "nonsense", "seed=many"])
def test_a_wrong_recipe_change_is_exit_code_2(capsys, tmp_path, change):
    code, _, err = call(capsys, "train", "pretrain-tiny", change, "--data", str(tmp_path), "--out", str(tmp_path / "r"))
    assert code == 2
    assert change.partition("=")[0] in err


@pytest.mark.parametrize(
    ("error", "code", "expected"),
    [
        (UsageError("no recipe 'x'"), 2, "no recipe 'x'"),
        (DataError("a.csv: line 3: empty text"), 3, "a.csv: line 3: empty text"),
        (TrainingStopped("loss is nan in step 7"), 4, "loss is nan in step 7"),
        (CheckpointError("R: damaged"), 5, "R: damaged"),
        (MachineError("full"), 6, "full"),
        (DataError("two\nlines"), 3, "two lines"),
        (OSError(errno.ENOSPC, "No space left on device", "R/last"), 6, "R/last: the disk is full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "R/last"), 6, "R/last: the disk is full"),
        (RuntimeError("[enforce fail] . PytorchStreamWriter failed writing file data/0"), 6, "the disk is full"),
        (ValueError("Error while serializing: I/O error: No space left on device (os error 28)"), 6, "disk is full"),
        (MemoryError(), 6, "optim.micro_batch"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 6, "optim.micro_batch"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "a.txt/b"), 2, "a.txt/b: not a directory; choose"),
        (FileExistsError(errno.EEXIST, "File exists", "a.txt"), 2, "a.txt: file exists; choose another place"),
        (UnicodeEncodeError("utf-8", "caf\udce9", 3, 4, "surrogates not allowed"), 3, r"'caf\udce9'; rename"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), 6, "train.gradient_checkpointing"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"), 6, "out of memory"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), 6, "data.workers"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "D"), 3, "D: no such file or directory"),
        (PermissionError(errno.EACCES, "Permission denied", "R"), 6, "R: permission denied"),
        (ModuleNotFoundError("No module named 'accelerate'", name="accelerate"), 6, 'pip install "accelerate>='),
        (ModuleNotFoundError("No module named 'PIL'", name="PIL.Image"), 6, 'pip install "pillow>='),
        (ModuleNotFoundError("No module named 'wandb'", name="wandb"), 6, 'pip install "wandb"'),
        (ZeroDivisionError("division by zero"), 1, "ZeroDivisionError: division by zero"),
    ],
)
def test_every_error_has_its_exit_code_and_one_sentence(capsys, fails, error, code, expected):
    fails(error)
    found, out, err = call(capsys, *TRAIN)
    assert found == code
    assert expected in err
    assert err.count("\n") == 1
    assert out == ""
    assert "Traceback" not in err


def test_torch_out_of_memory_class(capsys, fails):
    torch = pytest.importorskip("torch")
    fails(torch.OutOfMemoryError("whatever it says"))
    assert call(capsys, *TRAIN)[0] == 6


def test_an_error_carried_over_from_a_loader_worker_is_still_one_sentence(capsys, fails):
    text = """Caught DataError in DataLoader worker process 0.
Original Traceback (most recent call last):
  File "loader.py", line 1, in fetch
pixelbert.errors.DataError: photos/a.jpg: the JPEG ends too early: 17 bytes
"""
    fails(DataError(text))
    assert call(capsys, *TRAIN) == (3, "", "pixelbert: photos/a.jpg: the JPEG ends too early: 17 bytes\n")


@pytest.mark.parametrize("place", [0, 1, 6])
def test_debug_shows_the_traceback_wherever_it_stands(capsys, fails, place):
    fails(DataError("a.csv: line 3: empty text"))
    arguments = [*TRAIN]
    arguments.insert(place, "--debug")
    code, _, err = call(capsys, *arguments)
    assert code == 3
    assert "Traceback" in err
    assert err.endswith("pixelbert: a.csv: line 3: empty text\n")


def test_interrupt_tells_how_to_resume(capsys, fails):
    fails(KeyboardInterrupt())
    code, _, err = call(capsys, *TRAIN[:-1], "my runs/r 1", "seed=3")
    assert code == 130
    expected = "pixelbert train pretrain-tiny --data D --out 'my runs/r 1' seed=3 --resume"
    assert err == f"pixelbert: interrupted; to continue: {expected}\n"
    assert call(capsys, *TRAIN, "--resume")[2].count("--resume") == 1


def test_interrupt_of_another_verb(capsys, monkeypatch):
    def work(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pixelbert.doctor.examine", work)
    code, _, err = call(capsys, "doctor")
    assert code == 130
    assert "to run it again: pixelbert doctor" in err
    assert "--resume" not in err


@pytest.mark.parametrize("options", [[], ["-u"]])
def test_a_reader_that_goes_away_is_met_with_silence(options):
    code = "import sys; from pixelbert.cli import main; sys.exit(main(['recipes', 'pretrain-r50']))"
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, *options, "-c", code], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_core_package_that_is_missing_is_one_sentence(tmp_path):
    (tmp_path / "typer.py").write_text("raise ModuleNotFoundError(\"No module named 'typer'\", name='typer')")
    root = Path(cli.__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(root)])}
    command = [sys.executable, "-m", "pixelbert", "doctor"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 6
    assert "'typer' is missing" in done.stderr
    assert done.stderr.count("\n") == 1


def test_prepare_from_csv_to_prepared_data(tmp_path, capsys):
    from PIL import Image

    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.png")
    (tmp_path / "rows.csv").write_text("file,text\na.png,a red field\nb.png,a picture that is not there\n")
    source, out = str(tmp_path / "rows.csv"), tmp_path / "data"
    options = ["--column", "image=file", "--images", str(tmp_path)]
    assert call(capsys, "prepare", "csv", source, "--dry-run", *options)[0] == 0
    assert not out.exists()
    assert call(capsys, "prepare", "csv", source, "--out", str(out), *options)[0] == 0
    assert (out / "prepared.json").is_file()
    assert "b.png" in (out / "bad_rows.jsonl").read_text()
    assert call(capsys, "prepare", "csv", source, "--out", str(out), *options)[0] == 2  # it is there already
    assert call(capsys, "prepare", "csv", source, "--out", str(out), "--overwrite", *options)[0] == 0
    assert call(capsys, "prepare", "csv", source, "--out", str(out), "--overwrite", "--max-bad", "0", *options)[0] == 3
    assert (out / "prepared.json").is_file()  # the earlier one is still there


def test_prepare_offers_every_option_of_the_function():
    import inspect

    from pixelbert.data.prepare import prepare, survey

    ours = {"columns" if name == "column" else name for name in inspect.signature(cli.prepare).parameters}
    theirs = inspect.signature(prepare).parameters.keys() | inspect.signature(survey).parameters.keys()
    assert ours - {"dry_run"} == theirs - {"limits", "console"}


def test_prepare_help_names_every_format(capsys):
    from pixelbert.data.formats import FORMATS

    text = " ".join(call(capsys, "prepare", "--help")[1].replace("│", " ").split())
    assert all(name in text for name in FORMATS)


def test_train_passes_everything_on(monkeypatch, capsys):
    seen: dict[str, object] = {}
    loop = type(sys)("pixelbert.training.loop")
    loop.train = lambda *args, **kwargs: seen.update(args=args, **kwargs)
    monkeypatch.setitem(sys.modules, "pixelbert.training.loop", loop)
    arguments = ["a=1", "b.c=[2, 3]", "--from", "R0", "--resume", "--blind", "d=-4"]
    assert call(capsys, *TRAIN, *arguments)[0] == 0
    assert callable(seen.pop("attend"))  # draws the sheets of the report
    assert seen == {
        "args": ("pretrain-tiny", "D", Path("R")),
        "from_run": Path("R0"),
        "resume": True,
        "blind": True,
        "overrides": ["a=1", "b.c=[2, 3]", "d=-4"],
    }


def test_recipes_as_json_and_in_full(capsys):
    import yaml

    from pixelbert.recipes.schema import Recipe, load_recipe, recipe_names

    code, out, _ = call(capsys, "recipes", "--json")
    listed = json.loads(out)
    assert code == 0
    assert [recipe["name"] for recipe in listed] == recipe_names()
    assert all(recipe[fact] for recipe in listed for fact in ("description", "paper", "needs", "command", "expected"))
    _, out, _ = call(capsys, "recipes")
    assert all(recipe["command"] in out for recipe in listed)  # unbroken, however narrow the terminal
    for name in recipe_names():
        _, out, _ = call(capsys, "recipes", name)
        settings = Recipe.model_validate(yaml.safe_load(out)).model_dump()  # what is printed is a recipe again
        facts = ("description", "paper", "needs", "command", "expected")
        assert {**settings, **dict.fromkeys(facts)} == {**load_recipe(name).model_dump(), **dict.fromkeys(facts)}


def test_recipe_commands_name_themselves():
    from pixelbert.recipes.listing import list_recipes

    for recipe in list_recipes():
        assert f"train {recipe['name']} " in recipe["command"]
