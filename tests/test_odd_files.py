"""Files as people have them: odd logs, odd names, two processes on one output, data that are not 8 bit."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import forked
import numpy as np
import pytest
import tensorflow_datasets as tfds
from conftest import DATA_DIR, call_program

from covkeras import datasets, models
from covkeras.certification import Certificates, average_certified_radius, read_certificates, records
from covkeras.certification.logs import COLUMNS, CertificateFile
from covkeras.experiments import jobs, recipes, tuning
from covkeras.experiments.jobs import Environment
from covkeras.experiments.runs import RunFolder
from covkeras.reports import results as report
from covkeras.runtime.files import InUse, held

TRAINING = Path(__file__).parent.parent / "training"
HEADER = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n"
ROWS = ["0\t3\t3\t0.5\t1\t0:00:12.123456", "20\t8\t8\t0.25\t1\t0:00:11", "40\t8\t-1\t0.0\t0\t0:00:10.5"]
ROWS += ["60\t0\t1\t0.9\t0\t1 day, 0:00:12.000001"]
LOG = HEADER + "".join(row + "\n" for row in ROWS)

# (.5 + .25) / 4 images.
READ = {
    "plain": LOG,
    "windows": LOG.replace("\n", "\r\n"),
    "old mac": LOG.replace("\n", "\r"),
    "byte-order mark": "\ufeff" + LOG,
    "utf-16": LOG.encode("utf-16"),
    "utf-16 big": b"\xfe\xff" + LOG.encode("utf-16-be"),
    "blank lines": LOG.replace("\n", "\n\n  \n"),
    "trailing tabs": LOG.replace("\n", "\t\t\n"),
    "trailing blanks": LOG.replace("\n", "  \n"),
    "comments": "# sigma 0.5\n" + LOG + "# the end\n",
    "capitals": HEADER.upper() + LOG[len(HEADER) :],
    "repeated": LOG + LOG,
    "a row again": LOG + ROWS[2] + "\n",
    "a row again at another time": LOG + ROWS[0].replace("12.123456", "13.5") + "\n",
    "floats": LOG.replace("20\t8\t8", "20.0\t8.0\t8.0"),
    "truth": LOG.replace("\t1\t0:", "\tTrue\t0:").replace("\t0\t0:", "\tFalse\t0:"),
    "no last newline": LOG.rstrip("\n"),
    "other order": "\n".join("\t".join(line.split("\t")[::-1]) for line in LOG.splitlines()),
    "weeks": LOG.replace("1 day, 0:00:12.000001", "12 days, 3:04:05"),
    "more columns": LOG.replace("time\n", "time\tnote\n")
    .replace("1\n", "1\tx\n")
    .replace("5\n", "5\tx\n")
    .replace("6\n", "6\tx\n"),
}


@pytest.mark.parametrize("name", READ)
def test_odd_logs_have_the_right_acr(name, tmp_path):
    path, data = tmp_path / "log.tsv", READ[name]
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    index, labels, c = read_certificates(path)
    assert average_certified_radius(c, labels) == 0.1875
    assert sorted(index) == [0, 20, 40, 60] and (c.label == -1).sum() == 1


REFUSED = {
    "nan": (LOG.replace("0.25", "nan"), "line 3: radius must be a number from 0 to"),
    "inf": (LOG.replace("0.25", "inf"), "line 3: radius must be"),
    "negative": (LOG.replace("0.25", "-0.25"), "line 3: radius must be"),
    "huge": (LOG.replace("0.25", "1e9"), "line 3: radius must be"),
    "decimal comma": (LOG.replace("0.25", "0,25"), "line 3: radius must be"),
    "fraction of an image": (LOG.replace("\n20", "\n20.5"), "line 3: idx must be a whole number"),
    "negative image": (LOG.replace("\n20", "\n-20"), "line 3: idx must be a whole number"),
    "superscript": (LOG.replace("\n20", "\n2²"), "line 3: idx must be a whole number"),
    "predict -2": (LOG.replace("\t-1\t", "\t-2\t"), "line 4: predict must be a whole number from -1"),
    "label -1": (LOG.replace("40\t8\t-1\t0.0\t0", "40\t-1\t-1\t0.0\t1"), "line 4: label must be a whole number from 0"),
    "correct is not": (LOG.replace("0.25\t1", "0.25\t0"), "line 3: correct is '0', but label is 8 and predict 8"),
    "abstained with a radius": (LOG.replace("-1\t0.0", "-1\t0.3"), "line 4: predict is -1, an abstention, but radius"),
    "cut": (LOG[:-25], "line 5: 4 fields, where the header has 6"),
    "time": (LOG.replace("0:00:11", "soon"), "line 3: time must be seconds, or H:MM:SS, got 'soon'"),
    "two certificates": (LOG + ROWS[1].replace("0.25", "0.75") + "\n", "lines 3 and 6: image 20 has two different"),
    "no header": (LOG[len(HEADER) :], "lacks the columns"),
    "commas": (LOG.replace("\t", ","), "must be separated by tabs"),
    "blanks": (LOG.replace("\t", "    "), "must be separated by tabs"),
    "empty": ("", "lacks the columns"),
    "predictions": ("idx\tlabel\tpredict\tcorrect\ttime\n0\t3\t3\t1\t0:00:01\n", r"lacks the columns \['radius'\]"),
    "a column twice": (
        LOG.replace("time\n", "radius\n", 1).replace("radius\tcorrect", "radius\tcorrect\ttime"),
        "twice",
    ),
    "latin 1": (("# für\n" + LOG).encode("latin-1"), "line 1: no UTF-8-SIG text"),
    "zeros": (LOG.encode() + bytes(10), "line 6: no text"),
    "utf-16 unmarked": (LOG.encode("utf-16-le"), "line 1: no text"),
    "p_lower": (
        LOG.replace("time\n", "time\tp_lower\n")
        .replace("1\n", "1\t1.5\n")
        .replace("5\n", "5\t2\n")
        .replace("6\n", "6\t2\n"),
        "line 2: p_lower must be a number from 0 to 1",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_impossible_logs_are_one_line_with_the_file_and_the_line(name, tmp_path):
    data, message = REFUSED[name]
    path = tmp_path / "log.tsv"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    with pytest.raises(ValueError, match=message) as error:
        read_certificates(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)
    done = call_program(TRAINING / "report.py", path)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_a_large_radius_makes_no_large_table():
    c = Certificates.concatenate([Certificates.single(0, r, 0.9, 10, 0.0) for r in (0.3, 9e5)])
    assert len(report.table_radii([report.Result("a", np.zeros(2, int), c)])) <= 25
    assert report.steps_to(1.0, 0.25, 25) == [0, 0.25, 0.5, 0.75, 1.0]


def one(label=1):
    return Certificates.single(label, 0.5, 0.9, 100, 0.1, 3)


def test_a_file_of_an_older_version_keeps_its_columns(tmp_path):
    path = tmp_path / "c.tsv"
    path.write_text("idx\tlabel\tpredict\tradius\tcorrect\ttime\tp_lower\tsamples\n0\t1\t1\t0.5\t1\t0.1\t0.9\t100\n")
    with CertificateFile(path) as file:
        file.append(1, 1, one())
    index, labels, c = read_certificates(path)
    assert list(index) == [0, 1] and list(labels) == [1, 1] and list(c.samples) == [100, 100] and list(c.void) == [0, 0]
    with CertificateFile(tmp_path / "new.tsv") as file:
        file.append(1, 1, one())
    assert tuple((tmp_path / "new.tsv").read_text().split("\n")[0].split("\t")) == COLUMNS
    assert read_certificates(tmp_path / "new.tsv")[2].void[0] == 3


WRITER = (
    "import pathlib, sys\nfrom covkeras.certification.logs import CertificateFile\n"
    "from covkeras.runtime.files import held\n"
    "file = CertificateFile(sys.argv[1]); folder = held(pathlib.Path(sys.argv[2])); folder.__enter__()\n"
    "print('held', flush=True); sys.stdin.readline()\n"
)


def test_a_second_process_is_refused_with_the_path(tmp_path):
    """A file and a folder, until the first process ends, even by kill -9."""
    path, folder = tmp_path / "c.tsv", tmp_path / "run"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = forked.Popen([sys.executable, "-c", WRITER, str(path), str(folder)], text=True, **pipes)
    try:
        assert process.stdout.readline() == "held\n"
        for refused, place in ((lambda: CertificateFile(path), path), (lambda: held(folder).__enter__(), folder)):
            with pytest.raises(InUse, match=f"{place} is in use by another process"):
                refused()
        recipe = recipes.find("digits").replace(epochs=1, switch_epoch=0, decay_epochs=(), certify_images=2)
        run = RunFolder(folder)
        run.claim(recipe)
        from covkeras.experiments import fitting

        with pytest.raises(InUse):
            fitting.train(recipe, run)
        with pytest.raises(InUse):
            jobs.certify(recipe, run, models.lenet((8, 8, 1)))
        done = call_program(TRAINING / "run.py", "--run-dir", folder, "--recipe", run.recipe_file)
        assert done.returncode == 2 and "is in use by another process" in done.stderr
    finally:
        process.kill()
        process.communicate()
    CertificateFile(path).close()
    with held(folder), held(folder):  # a process may hold what it holds
        pass


def test_two_processes_on_one_output_certify_every_image_once(tmp_path):
    models.lenet((8, 8, 1)).save(tmp_path / "c.keras")
    command = [sys.executable, str(TRAINING / "certify.py"), str(tmp_path / "c.keras"), "--sigma", "0.25", "--n", "500"]
    command += ["--max", "40", "--out", str(tmp_path / "out.tsv")]
    both = [forked.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [p.communicate(timeout=240)[1] for p in both]
    codes = sorted(p.returncode for p in both)
    assert codes in ([0, 2], [0, 0]), errors
    if codes == [0, 2]:
        assert any("out.tsv is in use by another process" in e for e in errors)
    lines = (tmp_path / "out.tsv").read_text().splitlines()
    assert len(lines) == 41 and len({line.split("\t")[0] for line in lines}) == 41


def test_names_with_dots_have_each_their_own_sidecar_and_name(tmp_path):
    models.lenet((8, 8, 1)).save(tmp_path / "c.keras")
    common = [tmp_path / "c.keras", "--n", "100", "--max", "2"]
    for sigma in ("0.25", "0.50"):
        done = call_program(
            TRAINING / "certify.py", *common, "--sigma", sigma, "--out", tmp_path / f"cert/sigma_{sigma}"
        )
        assert done.returncode == 0 and f"sigma_{sigma}" in done.stdout, done.stderr
        assert json.loads((tmp_path / f"cert/sigma_{sigma}.json").read_text())["sigma"] == float(sigma)
    done = call_program(TRAINING / "report.py", *(tmp_path / "cert" / f"sigma_{s}" for s in ("0.25", "0.50")))
    table, *_ = done.stdout.split("\n\n")
    assert [line.split()[0] for line in table.splitlines()[1:]] == ["sigma_0.25", "sigma_0.50"]
    done = call_program(TRAINING / "certify.py", *common, "--sigma", "0.25", "--out", tmp_path / "x.json")
    assert done.returncode == 0 and (tmp_path / "x.json").read_text().startswith("idx"), done.stderr
    assert records.sidecar("a/certificates.tsv") == Path("a/certificates.json")
    names = [records.sidecar(n).name for n in ("a", "a.b", "a.tsv", "a.txt", "a.json")]
    assert names == ["a.json", "a.b.json", "a.json", "a.txt.json", "a.json.json"]


def test_a_start_past_the_end_leaves_nothing_behind(tmp_path):
    models.lenet((8, 8, 1)).save(tmp_path / "c.keras")
    for flags in (["--start", 400], ["--start", 3, "--max", 2], ["--max", 2, "--shard", "5/8"]):
        out = tmp_path / "none.tsv"
        done = call_program(TRAINING / "certify.py", tmp_path / "c.keras", "--sigma", 0.25, *flags, "--out", out)
        assert done.returncode == 2 and "no image is left to certify" in done.stderr, done.stderr
        assert not out.exists() and not out.with_suffix(".json").exists()
    done = call_program(TRAINING / "certify.py", tmp_path / "c.keras", "--sigma", 0.25, "--n", 9, "--out", out)
    assert done.returncode == 2 and "n must be at least 10 at alpha 0.001, got 9" in done.stderr and not out.exists()


def test_a_damaged_sidecar_is_named(tmp_path):
    path = tmp_path / "c.tsv"
    path.write_text(LOG)
    (tmp_path / "c.json").write_text('{"sigma": 0.')
    with pytest.raises(ValueError, match=r"c.json is damaged \(.*\). Certify again"):
        records.open_records(path, {})


def test_the_home_folder_in_every_path_flag(tmp_path, monkeypatch):
    """As shells leave it in --out=~/x."""
    monkeypatch.setenv("HOME", str(tmp_path))
    wanted = {
        "run.py": ["--run-dir=~/r", "--data-dir=~/d"],
        "compare.py": ["--out=~/r", "--data-dir=~/d"],
        "search.py": ["--out=~/r", "--data-dir=~/d"],
        "noisy_labels.py": ["--run-dir=~/r", "--data-dir=~/d"],
        "certify.py": ["~/c.keras", "--out=~/r", "--data-dir=~/d", "--merge=~/m"],
        "attack.py": ["~/c.keras", "--certificates=~/r", "--data-dir=~/d"],
        "report.py": ["~/c.tsv", "--out=~/r"],
        "diagnose.py": ["--classifier=~/c", "--out=~/r", "--comparison=~/k", "--data-dir=~/d", "--data=digits"],
        "../serving/export.py": ["--run=~/r", "--out=~/o/1", "--data-dir=~/d"],
        "../serving/local.py": ["~/exports"],
    }
    for name, flags in wanted.items():
        path = (TRAINING / name).resolve()
        monkeypatch.syspath_prepend(str(path.parent))
        spec = importlib.util.spec_from_file_location(f"parsed_{path.stem}", path)
        program = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(program)
        values = [
            v for value in vars(program.parse(flags)).values() for v in (value if isinstance(value, list) else [value])
        ]
        given = [v for v in values if isinstance(v, str) and v.startswith(str(tmp_path))]
        assert len(given) == len([f for f in flags if "~" in f]) and not any("~" in str(v) for v in values), name
    (tmp_path / "mine.json").write_text(recipes.find("digits").replace(name="mine").to_json())
    assert recipes.find("~/mine.json").name == "mine"


def test_printed_commands_are_quoted(tmp_path):
    run = tmp_path / "my runs"
    flags = ["--epochs", "1", "--switch-epoch", "0", "--decay-epochs", "--reference", "none", "--certify-images", "2"]
    done = call_program(TRAINING / "run.py", *flags, "--certify-n", "100", "--run-dir", run)
    assert done.returncode == 0, done.stderr
    assert f"covkeras serve '{run}/export'" in done.stdout
    with pytest.raises(FileNotFoundError, match=r"--data_dir='.*my data'"):
        datasets.load("mnist", "test", tmp_path / "my data")


@pytest.mark.parametrize("file", ["oracle.json", "trial_1/trial.json"])
def test_a_cut_file_of_keras_tuners_is_named_and_the_search_goes_on(file, tmp_path):
    flags = ["--epochs", "1", "--switch-epoch", "0", "--decay-epochs", "--train-images", "256", "--certify-images", "4"]
    flags += ["--certify-n", "100", "--seeds", "0", "--tuner", "random", "--trials", "2", "--search", "lam=0:8"]
    out = tmp_path / "found"
    first = call_program(TRAINING / "search.py", *flags, "--out", out)
    assert first.returncode == 0, first.stderr
    best = (out / "best_recipe.json").read_text()
    runs = {p: p.stat().st_mtime_ns for p in (out / "runs").glob("*/certificates.tsv")}
    damaged = out / "trials" / file
    damaged.write_text(damaged.read_text()[:40])
    again = call_program(TRAINING / "search.py", *flags, "--out", out)
    assert again.returncode == 0, again.stderr
    assert f"trials.damaged0/{file} is damaged" in again.stdout and (out / "best_recipe.json").read_text() == best
    assert {p: p.stat().st_mtime_ns for p in (out / "runs").glob("*/certificates.tsv")} == runs
    assert tuning.set_damage_aside(out / "trials") is None


def prepared(name, folder, image, convert, label=None, splits=("train", "test")):
    """A TFDS folder of 30 images of 8 x 8."""
    digits = datasets.load("digits", "test")
    label = label or tfds.features.ClassLabel(num_classes=10)
    number = (lambda i: f"class {i}") if isinstance(label, tfds.features.Text) else int
    records_of = [(k, {"image": convert(digits.images[k]), "label": number(digits.labels[k])}) for k in range(30)]
    builder = tfds.dataset_builders.AdhocBuilder(
        name=name,
        version="1.0.0",
        features=tfds.features.FeaturesDict({"image": image, "label": label}),
        split_datasets=dict.fromkeys(splits, records_of),
        data_dir=str(folder),
        description="x",
        homepage="http://x",
        citation="",
    )
    builder.download_and_prepare()
    return digits


Image, Tensor = tfds.features.Image, tfds.features.Tensor
EIGHT_BIT = {
    "png": (lambda: Image(shape=(8, 8, 1)), lambda x: x),
    "tensor": (lambda: Tensor(shape=(8, 8, 1), dtype=np.uint8), lambda x: x),
    "colour": (lambda: Image(shape=(8, 8, 3)), lambda x: np.repeat(x, 3, -1)),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", EIGHT_BIT)
def test_eight_bit_data_are_read_as_they_are(kind, tmp_path):
    image, convert = EIGHT_BIT[kind]
    digits = prepared(f"eight_{kind}", tmp_path / "tfds data ü", image(), convert)
    data = datasets.load(f"eight_{kind}", "test", tmp_path / "tfds data ü")
    # TFDS writes records in an order of its own.
    expected = {(convert(i).tobytes(), int(n)) for i, n in zip(digits.images[:30], digits.labels[:30], strict=True)}
    assert {(i.tobytes(), int(n)) for i, n in zip(data.images, data.labels, strict=True)} == expected
    assert len(data) == len(expected) == 30


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_jpeg_data_are_read_as_serving_and_pillow_read_them(tmp_path):
    """The accurate transform: the records' own bytes, decoded by Pillow, are the pixels that are trained on."""
    import io

    from PIL import Image as Pillow

    folder = tmp_path / "data"
    prepared("eight_jpeg", folder, Image(shape=(8, 8, 3), encoding_format="jpeg"), lambda x: np.repeat(x, 3, -1))
    builder = tfds.builder("eight_jpeg", data_dir=str(folder))
    raw = builder.as_dataset(split="test", decoders={"image": tfds.decode.SkipDecoding()}).as_numpy_iterator()
    expected = np.stack([np.asarray(Pillow.open(io.BytesIO(r["image"])).convert("RGB")) for r in raw])
    assert np.array_equal(datasets.load("eight_jpeg", "test", folder).images, expected)


OTHERS = {
    "uint16": (lambda: Image(shape=(8, 8, 1), dtype=np.uint16, encoding_format="png"), lambda x: x.astype(np.uint16)),
    "float32": (lambda: Tensor(shape=(8, 8, 1), dtype=np.float32), lambda x: (x / 255).astype(np.float32)),
    "float32 of": (lambda: Image(shape=(8, 8, 1), dtype=np.float32), lambda x: (x / 255).astype(np.float32)),
    "int64": (lambda: Tensor(shape=(8, 8, 1), dtype=np.int64), lambda x: x.astype(np.int64)),
    r"shape \(8, 8\)": (lambda: Tensor(shape=(8, 8), dtype=np.uint8), lambda x: x[..., 0]),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("dtype", OTHERS)
def test_other_data_are_refused_by_their_dtype(dtype, tmp_path):
    image, convert = OTHERS[dtype]
    prepared("other", tmp_path, image(), convert)
    with pytest.raises(ValueError, match=rf"must be 8-bit, uint8 \(height, width, channels\), got .*{dtype}"):
        datasets.load("other", "test", tmp_path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("label", [tfds.features.Text(), tfds.features.Scalar(np.int64)])
def test_labels_without_classes_are_told_of_class_label(label, tmp_path):
    prepared("labelled", tmp_path, Image(shape=(8, 8, 1)), lambda x: x, label)
    with pytest.raises(ValueError, match=f"must be a tfds.features.ClassLabel, got {type(label).__name__}"):
        datasets.load("labelled", "train", tmp_path)


@pytest.mark.real_data
def test_peer_logs_are_read_whole():
    folder = Path(DATA_DIR).parent / "peer_logs"
    for path in sorted(folder.glob("*.tsv")):
        index, labels, c = read_certificates(path)
        assert len(index) == len(set(index)) == len(path.read_text().splitlines()) - 1
        assert np.isfinite(c.radius).all() and len(labels) >= 400
    assert os.listdir(folder)


def test_an_attack_knows_the_size_that_run_certified_at(tmp_path, monkeypatch):
    """run.py's certificates say it, certify.py's too; of an older file, a flag does."""
    recipe = recipes.find("digits").replace(image_size=0, certify_images=2, certify_n=100)
    folder = RunFolder(tmp_path / "run")
    folder.claim(recipe)
    classifier = models.lenet((8, 8, 1))
    classifier.save(folder.classifier_file)
    jobs.certify(recipe, folder, classifier, Environment())
    settings = json.loads((folder.path / "certificates.json").read_text())
    assert settings["image_size"] == 0
    asked = []
    load = datasets.load
    monkeypatch.setattr(datasets, "load", lambda *a: asked.append(a[3]) or load(*a[:3]))
    flags = [
        folder.classifier_file,
        "--certificates",
        folder.certificates_file,
        "--factors",
        1,
        "--steps",
        1,
        "--n",
        20,
    ]
    for recorded, given, expected in ((0, [], 0), (16, [], 16), (None, ["--image-size", 16], 16)):
        changed = {k: v for k, v in settings.items() if k != "image_size"}
        changed |= {} if recorded is None else {"image_size": recorded}
        (folder.path / "certificates.json").write_text(json.dumps(changed))
        done = call_program(TRAINING / "attack.py", *flags, *given)
        assert done.returncode == 0, done.stderr
        assert asked.pop() == expected
    # A file without it goes on being written.
    jobs.certify(recipe.replace(certify_images=3), folder, classifier, Environment())
