"""Good runs, and the evidence that they leave."""

import dataclasses
import datetime
import hashlib
import html
import json
import math
import re
import socket
import string
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smoke_tests import families, report
from smoke_tests.report import RankVerdict, Result
from smoke_tests.selection import EXTRA
from smokehouse_loader.failures import BY_NAME
from smokehouse_loader.signs import lines_with

from .conftest import Ended, Starter

STAGED = {
    *("versions", "collectives", "load", "weights", "train", "parity", "resume", "consolidated weights", "generate"),
    *("mixed modality", "mixed modality: dummy image", "memory", "bf16"),
}
UNSTAGED = {"checkpoint", "plain run", "auto classes"}
CONTROLS = {"missing key", "flipped bit", "truncated shard", "wrong shape"}
CONTROLS_OF_2 = {"ZeRO-1 in place of ZeRO-2", "no ZeRO"}
CONTROLS_OF_3 = {"seed failure: load_state_dict", "seed failure: zero.Init"}
ABOUT_PICTURES = {"mixed modality", "mixed modality: dummy image"}
PATCH_EMBED = "visual.patch_embed.proj.weight"


# the schema


@pytest.fixture(scope="session")
def schema(root: Path) -> jsonschema.Draft202012Validator:
    """Return the schema of reports, with dates checked too."""
    text = (root / "smoke_tests" / "report.schema.json").read_text()
    schema = json.loads(text)
    jsonschema.Draft202012Validator.check_schema(schema)
    checker = jsonschema.FormatChecker()

    # jsonschema itself accepts any text as a date-time unless another package is installed.
    @checker.checks("date-time", raises=ValueError)
    def is_date_time(value: object) -> bool:
        return not isinstance(value, str) or datetime.datetime.fromisoformat(value).tzinfo is not None

    return jsonschema.Draft202012Validator(schema, format_checker=checker)


def example() -> dict[str, Any]:
    """Return a minimal valid report."""
    return {
        "environment": "tiny",
        "lock": {"requirements.txt": "0" * 64},
        "device": "cpu",
        "backend": "gloo",
        "precision": "fp32",
        "world_size": 1,
        "versions": {"torch": "2.6.0", "cuda": None},
        "machine": {"architecture": "x86_64", "cpu": "one", "cpus": 1, "memory_bytes": 1},
        "checkpoint": "made",
        "started": "2025-03-15T12:00:00+00:00",
        "seconds": 1.5,
        "verdict": "passed",
        "failure": "",
        "not_run": [{"name": "bf16", "reason": "none"}],
        "checks": [
            {
                "name": "load",
                "zero_stage": 3,
                "kind": "check",
                "verdict": "passed",
                "seconds": 0.5,
                "ranks": [{"rank": 0, "verdict": "passed", "detail": "all"}],
                "detail": "all",
            }
        ],
    }


def test_example_is_valid(schema: jsonschema.Draft202012Validator) -> None:
    schema.validate(example())


@pytest.mark.parametrize("verdict", ["failed", "known-issue"])
def test_run_may_fail_or_know_an_issue(schema: jsonschema.Draft202012Validator, verdict: str) -> None:
    found = example()
    check = found["checks"][0]
    check["verdict"] = check["ranks"][0]["verdict"] = verdict
    found["verdict"] = "failed" if verdict == "failed" else "passed"
    schema.validate(found)


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("checks", 0, "verdict"), "failed"),  # of a run that passed
        (("failure",), "rank 0 was killed"),  # likewise
        (("checks",), []),  # nothing was proven
        (("verdict",), "known-issue"),
        (("verdict",), "skipped"),
        (("checks", 0, "verdict"), "ok"),
        (("checks", 0, "kind"), "test"),
        (("checks", 0, "zero_stage"), 1),
        (("checks", 0, "seconds"), -1),
        (("checks", 0, "detail"), ""),
        (("checks", 0, "ranks"), []),
        (("checks", 0, "ranks", 0, "verdict"), "missing"),
        (("checks", 0, "ranks", 0, "rank"), -1),
        (("checks", 0, "extra"), 1),
        (("lock",), {}),
        (("lock", "requirements.txt"), "sha256:0"),
        (("device",), "tpu"),
        (("world_size",), 0),
        (("legs",), []),
        (("legs",), [{"name": "nccl x1", "backend": "nccl", "world_size": 1}]),
        (("checks", 0, "leg"), ""),
        (("started",), "yesterday"),
        (("started",), "2025-03-15T12:00:00"),  # in which time zone?
        (("versions", "torch"), 2.6),
        (("surprise",), True),
    ],
)
def test_wrong_report_is_invalid(schema: jsonschema.Draft202012Validator, where: tuple[Any, ...], value: object) -> None:
    found: Any = example()
    *way, last = where
    part = found
    for step in way:
        part = part[step]
    part[last] = value
    assert not schema.is_valid(found)


@pytest.mark.parametrize("key", sorted(example()))
def test_report_that_lacks_something_is_invalid(schema: jsonschema.Draft202012Validator, key: str) -> None:
    found = example()
    del found[key]
    assert not schema.is_valid(found)


@pytest.mark.parametrize("key", sorted(example()["checks"][0]))
def test_check_that_lacks_something_is_invalid(schema: jsonschema.Draft202012Validator, key: str) -> None:
    found = example()
    del found["checks"][0][key]
    assert not schema.is_valid(found)


# the functions that make it

VERDICTS = st.sampled_from(["passed", "failed", "known-issue"])
TEXTS = st.text(min_size=1, max_size=40)
RANKS = st.lists(st.tuples(VERDICTS, TEXTS), min_size=1, max_size=5).map(
    lambda found: [RankVerdict(number, verdict, detail) for number, (verdict, detail) in enumerate(found)]
)
NAMES = st.text(string.ascii_letters, min_size=1, max_size=20)
STAGES = st.sampled_from([None, 2, 3])
KINDS = st.sampled_from(["check", "control"])
RESULTS = st.lists(st.builds(Result, NAMES, STAGES, KINDS, VERDICTS, st.floats(0, 1e6), RANKS, TEXTS), max_size=8)


@given(RANKS)
def test_worst_rank_decides(ranks: list[RankVerdict]) -> None:
    verdict, detail = report.overall(ranks)
    verdicts = {rank.verdict for rank in ranks}
    worst = next(verdict for verdict in ("failed", "known-issue", "passed") if verdict in verdicts)
    assert verdict == worst
    telling = [rank for rank in ranks if rank.verdict == worst]
    name = "" if worst == "passed" or len(ranks) == 1 else r"rank {}: "
    assert detail in [name.format(rank.rank) + rank.detail for rank in telling]


def test_cause_is_reported_before_its_victims() -> None:
    ranks = [RankVerdict(0, "failed", "Connection reset by peer"), RankVerdict(1, "failed", "killed by signal 9 (SIGKILL)")]
    assert report.overall(ranks) == ("failed", "rank 1: killed by signal 9 (SIGKILL)")
    lost = (
        "RuntimeError: [/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:42389"
    )
    ranks = [RankVerdict(0, "failed", lost), RankVerdict(1, "failed", "RuntimeError: cannot reshape tensor of 0 elements")]
    assert report.overall(ranks) == ("failed", "rank 1: RuntimeError: cannot reshape tensor of 0 elements")
    assert report.overall(ranks[:1] * 2) == ("failed", f"rank 0: {lost}")


@given(RESULTS, st.booleans())
def test_table_has_a_row_for_everything(results: list[Result], colour: bool) -> None:
    content = example() | {"verdict": "failed"}
    text = report.table(content, results, colour=colour)
    assert all(result.name in text for result in results)
    assert all(report.line(result, colour=colour) for result in results)


def test_table_names_each_leg_for_what_it_is() -> None:
    legs = [
        {"name": "nccl x1", "backend": "nccl", "world_size": 1, "gpus": 1},
        {"name": "gloo x2", "backend": "gloo", "world_size": 2, "gpus": 1},
    ]
    ranks = [RankVerdict(0, "passed", "all")]
    results = [
        Result("load", stage, "check", "passed", 0.1, ranks, "all", leg=leg)
        for leg in ("nccl x1", "gloo x2")
        for stage in (3, 2)
    ]
    results += [Result("collectives", 3, "check", "failed", 0.1, ranks, "rank 1: wrong", leg="gloo x2")]
    results += [Result("plain run", None, "check", verdict, 0.1, ranks, "said", leg=leg)
                for leg, verdict in (("nccl x1", "passed"), ("gloo x2", "failed"))]  # fmt: skip
    content = example() | {"device": "cuda", "backend": "nccl", "precision": "bf16", "legs": legs, "verdict": "failed"}
    lines = report.table(content, results, colour=False).splitlines()
    assert lines[0].split() == ["nccl", "x1", "nccl", "x1", "gloo", "x2", "gloo", "x2"]
    assert lines[1].split() == ["check", "ZeRO-2", "ZeRO-3", "ZeRO-2", "ZeRO-3"]
    rows = {line.partition("  ")[0]: line.partition("  ")[2].split() for line in lines}
    assert rows["load"] == ["ok", "ok", "ok", "ok"]
    assert rows["collectives"] == ["-", "-", "-", "FAIL", "rank", "1:", "wrong"]
    assert rows["plain run"] == ["FAIL", "said"]  # of either leg
    assert any(line.endswith(" on cuda, bf16, nccl with 1 rank and gloo with 2 ranks on 1 GPU") for line in lines)


def test_fields_of_one_leg_are_as_ever() -> None:
    one = Result("load", 3, "check", "passed", 0.5, [RankVerdict(0, "passed", "all")], "all")
    assert "leg" not in one.fields
    assert dataclasses.replace(one, leg="gloo x2").fields["leg"] == "gloo x2"


@given(RESULTS, st.text(max_size=20))
def test_junit_is_xml_whatever_was_said(results: list[Result], failure: str) -> None:
    told = [result.told for result in results]
    suite = ElementTree.fromstring(report._junit(example() | {"failure": failure}, results, told))
    wrong = sum(result.verdict == "failed" for result in results) + bool(failure)
    assert int(suite.get("failures", "")) == wrong == len(suite.findall("testcase/failure"))
    assert int(suite.get("tests", "")) == len(results) + bool(failure) == len(suite.findall("testcase"))


@given(RESULTS)
def test_json_is_written_a_check_at_a_time_as_if_at_once(
    tmp_path_factory: pytest.TempPathFactory, results: list[Result]
) -> None:
    folder = tmp_path_factory.mktemp("written")
    run = {name: value for name, value in example().items() if name != "checks"}
    report.write(folder, run, results)
    whole = json.dumps(run | {"checks": [result.fields for result in results]}, indent=2) + "\n"
    assert (folder / "report.json").read_text() == whole


def test_report_is_atomic(tmp_path: Path) -> None:
    (tmp_path / "report.json").mkdir()  # cannot be replaced by a file
    with pytest.raises(OSError, match="directory"):
        report.write(tmp_path, example(), [])
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


# a whole good run of each environment


def test_good_run_passes(proven: Ended) -> None:
    assert (proven.code, proven.stderr) == (0, "")
    assert proven.report["verdict"] == "passed"
    assert proven.report["failure"] == ""
    absent = set()
    if proven.expectations["gloo_race"] == "fixed" or not proven.family.gathers_pairs:
        absent.add("control: gloo race")
    if proven.expectations["later_key_layout"] == "whole" or not proven.family.layouts:
        absent.add("control: later key layout")
    if not proven.family.mixes_modalities:
        absent |= ABOUT_PICTURES
    if not proven.family.vision:
        absent.add("frozen vision tower")
    [users] = [entry["name"] for entry in proven.report["not_run"] if entry["reason"] == "only with --all"]
    assert users.split(", ") == [name for name in EXTRA if name not in {"throughput", "liger"} | absent]
    assert {entry["name"] for entry in proven.report["not_run"]} == absent | {users}


def test_report_matches_the_schema(proven: Ended, schema: jsonschema.Draft202012Validator) -> None:
    schema.validate(proven.report)


def test_every_check_and_control_was_run(proven: Ended) -> None:
    found = {(c["kind"], c["name"], c["zero_stage"]) for c in proven.report["checks"]}
    wanted: set[tuple[str, str, int | None]] = {("check", name, stage) for name in STAGED for stage in (2, 3)}
    if not proven.family.mixes_modalities:
        wanted = {key for key in wanted if key[1] not in ABOUT_PICTURES}
    wanted |= {("check", name, None) for name in UNSTAGED}
    wanted |= {("control", name, stage) for name in CONTROLS for stage in (2, 3)}
    wanted |= {("control", name, stage) for stage, names in ((2, CONTROLS_OF_2), (3, CONTROLS_OF_3)) for name in names}
    # A check proves what upstream fixed, in place of its control.
    expectations = proven.expectations
    race = ("check", "late gathers") if expectations["gloo_race"] == "fixed" else ("control", "gloo race")
    layout = ("check", "both key layouts") if expectations["later_key_layout"] == "whole" else ("control", "later key layout")
    if proven.family.gathers_pairs:
        wanted.add((*race, 3))
    if proven.family.layouts:
        wanted |= {(*layout, 2), (*layout, 3)}
    assert found == wanted
    assert len(found) == len(proven.report["checks"])


def test_every_rank_gave_its_verdict(proven: Ended) -> None:
    alone = UNSTAGED | {"consolidated weights"}
    for check in proven.report["checks"]:
        assert [rank["rank"] for rank in check["ranks"]] == ([0] if check["name"] in alone else [0, 1])
        wanted = "known-issue" if check["name"] == "mixed modality" else "passed"
        assert {check["verdict"], *(rank["verdict"] for rank in check["ranks"])} == {wanted}


@pytest.mark.parametrize("stage", [2, 3])
def test_known_issue_says_which_rank_died_of_what(proven: Ended, stage: int) -> None:
    # The rank with text only aborts in gloo's C++, which ends the other rank too; Python's dump of its threads may crash.
    if not proven.family.mixes_modalities:
        assert ("mixed modality", stage) not in {(c["name"], c["zero_stage"]) for c in proven.report["checks"]}
        return
    detail = proven.found("mixed modality", stage)["detail"]
    assert re.fullmatch(r"rank 1: dies of gloo::EnforceNotMet: killed by signal (6 \(SIGABRT\)|11 \(SIGSEGV\))", detail)


def test_known_issue_is_reported_with_cause_and_fix(proven: Ended) -> None:
    known = BY_NAME["mixed-modality"]
    for check in proven.report["checks"]:
        wanted = f"mixed-modality: {known.cause} Fix: {known.cure}." if check["name"] == "mixed modality" else ""
        assert check["diagnosis"] == wanted
    count = 2 if proven.family.mixes_modalities else 0
    assert proven.stdout.count(known.cure) == count
    assert (proven.folder / "junit.xml").read_text().count(known.cause) == count


def test_another_stage_is_detected_by_what_ranks_hold(proven: Ended) -> None:
    held = {"ZeRO-1 in place of ZeRO-2": ["gradient"], "no ZeRO": ["gradient", "master", "moment"]}
    for stage, (name, whole) in zip((1, 0), held.items(), strict=True):
        parts = "; ".join(rf"[\d,]+ {what} elements held, a rank's share of [\d,]+ is [\d,]+" for what in whole)
        for rank in proven.found(name, 2, "control")["ranks"]:
            assert re.fullmatch(rf"detected: expected ZeRO stage 2, the engine runs {stage}; {parts}", rank["detail"])


def test_race_is_detected_or_proven_fixed(proven: Ended) -> None:
    if not proven.family.gathers_pairs:
        assert not {"late gathers", "gloo race"} & {check["name"] for check in proven.report["checks"]}
        return
    if proven.expectations["gloo_race"] == "fixed":
        gone = proven.found("late gathers", 3)
        assert gone["detail"] == "bit-equal without the workaround, however late a gather arrives"
        return
    race = proven.found("gloo race", 3, "control")
    found = [re.match(r"detected at try (\d+): \d+ tensors silently wrong", rank["detail"]) for rank in race["ranks"]]
    assert len({match[1] for match in found if match}) == 1
    assert all(found)


def test_seed_failure_is_the_one_of_the_seed(proven: Ended) -> None:
    others = [sign for name in BY_NAME["partitioned-before-load"].ends_as for sign in BY_NAME[name].signs]
    for way in ("load_state_dict", "zero.Init"):
        for rank in proven.found(f"seed failure: {way}", 3, "control")["ranks"]:
            if way == "zero.Init" and lines_with(others, rank["detail"]):  # as with other versions, or other initialisations
                continue
            # In the words of the seed, or in those of transformers 5 when it meets partitioned parameters.
            found = re.search(
                r"size mismatch for (\S+): copying a param with shape (.*) from checkpoint, "
                r"the shape in current model is (.*)\."
                r"|(\S+) \| MISMATCH \| Reinit due to size mismatch - ckpt: (.*) vs model:(.*)",
                rank["detail"],
            )
            assert found, rank
            name, *shapes = filter(None, found.groups())
            assert proven.family.published(name) == proven.family.first_tensor
            assert shapes == [f"torch.Size({[*proven.family.first_shape]})", "torch.Size([0])"]


def test_evidence_is_bound_to_lock_and_machine(proven: Ended, root: Path) -> None:
    lock = root / "lockfiles" / proven.name
    digests = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in lock.iterdir()}
    assert proven.report["lock"] == digests
    pins = dict(re.findall(r"^(\S+)==(\S+)", (lock / "requirements.txt").read_text(), re.MULTILINE))
    for name in ("torch", "transformers", "deepspeed"):
        assert proven.report["versions"][name].partition("+")[0] == pins[name].partition("+")[0]
    assert proven.report["environment"] == proven.name
    assert (proven.report["device"], proven.report["backend"], proven.report["precision"]) == ("cpu", "gloo", "fp32")
    assert proven.report["world_size"] == 2
    assert proven.report["checkpoint"] == "made"
    [trained] = re.findall(r"^([\d,]+) parameters", proven.found("checkpoint")["detail"])
    if proven.family.trained_width:  # most of a run's time goes into moving numbers
        assert int(trained.replace(",", "")) < proven.family.synthetic_parameters / 7
    assert 0 < proven.report["seconds"] < proven.seconds
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(proven.report["started"])
    assert datetime.timedelta(0) <= age < datetime.timedelta(hours=1)


def test_junit_counts_what_the_report_counts(proven: Ended) -> None:
    suite = ElementTree.parse(proven.folder / "junit.xml").getroot()
    cases = [(case.get("name"), case.get("classname")) for case in suite.findall("testcase")]
    stages = {2: "zero-2", 3: "zero-3", None: "all"}
    assert cases == [(c["name"], f"{c['kind']}.{stages[c['zero_stage']]}") for c in proven.report["checks"]]
    assert suite.get("tests") == str(len(cases))
    assert suite.get("failures") == "0"


def test_what_is_left_is_the_evidence(proven: Ended) -> None:
    assert {path.name for path in proven.folder.iterdir()} == {".lock", "logs", "report.json", "report.html", "junit.xml"}


def test_progress_and_table(proven: Ended) -> None:
    live, _, table = proven.stdout.partition("\n\n")
    for check in proven.report["checks"]:
        stage = f"zero-{check['zero_stage']}" if check["zero_stage"] else "-"
        mark = "known" if check["verdict"] == "known-issue" else "ok"
        kind = "control: " if check["kind"] == "control" else ""
        assert re.search(rf"^  {mark} +{stage} +{re.escape(kind + check['name'])} +\d+\.\d\d s  \S", live, re.MULTILINE)
        assert re.search(rf"^{re.escape(check['name'])} +(ok|known|-)", table, re.MULTILINE)
    assert "FAIL" not in proven.stdout
    for entry in proven.report["not_run"]:
        assert f"\nnot run: {entry['name']} ({entry['reason']})\n" in table
    *_, verdict, counts, where, page = table.splitlines()
    assert verdict.startswith(f"PASSED  {proven.name}: torch ")
    assert verdict.endswith(" on cpu, gloo, fp32, 2 ranks")
    kinds = [sum(c["kind"] == kind for c in proven.report["checks"]) for kind in ("check", "control")]
    assert counts.startswith(f"{kinds[0]} checks and {kinds[1]} controls in ")
    assert where == f"report: {proven.folder}/report.json"
    assert page == f"page: {proven.folder}/report.html"


def test_page_shows_each_check_and_what_it_proves(proven: Ended) -> None:
    text = html.unescape((proven.folder / "report.html").read_text())
    assert "partial" not in proven.report
    for check in proven.report["checks"]:
        assert f'<th scope="row">{check["name"]}\n<p class="proves">{check["proves"]}</p></th>' in text
        assert all(rank["detail"] in text for rank in check["ranks"])
    assert proven.found("weights", 3)["proves"].startswith("Check that every tensor equals the file's bit for bit")
    assert proven.found("parity", 3)["proves"].startswith("Compare a ZeRO run's global losses")
    assert f"<td>{proven.report['machine']['cpu']}</td>" in text


def test_memory_of_each_rank(proven: Ended, inspection: dict[str, Any]) -> None:
    """Under ZeRO-2 a rank holds every element, under ZeRO-3 half of each parameter, rounded up; and less than 2.5 GB.

    A few of the file's may be in buffers, as what chooses among experts.
    """
    events = [json.loads(line) for line in (proven.folder / "logs" / "events.jsonl").read_text().splitlines()]
    sizes = inspection[proven.stack["model"]["family"]]["trained"]
    wanted = {"zero2": sum(sizes), "zero3": sum((size + 1) // 2 for size in sizes)}
    said = [(e["job"], e["rank"], e["data"]) for e in events if e["event"] == "end" and "peak_bytes" in e["data"]]
    assert sorted((job, rank) for job, rank, _ in said) == [("zero2", 0), ("zero2", 1), ("zero3", 0), ("zero3", 1)]
    for job, _, data in said:
        assert 0.999 * wanted[job] <= data["elements"] <= wanted[job]
        assert 0 < data["peak_bytes"] < 2.5e9


def test_the_report_has_the_peaks_of_each_rank_and_no_gpu_on_a_cpu(proven: Ended) -> None:
    report = proven.report
    assert report["gpu"] is None
    assert report["backend"] == "gloo"
    found = sorted((entry["zero_stage"], entry["rank"]) for entry in report["memory"])
    assert found == [(stage, rank) for stage in (2, 3) for rank in (0, 1)]
    assert all({*entry} == {"zero_stage", "rank", "rss_bytes"} and 0 < entry["rss_bytes"] < 2.5e9 for entry in report["memory"])


def size(shape: list[int]) -> int:
    """Return the number of elements."""
    total = 1
    for extent in shape:
        total *= extent
    return total


# the synthetic checkpoint


@pytest.fixture
def tensors(inspection: dict[str, Any], family: str) -> dict[str, Any]:
    """Return name -> shape, shard and counts of its values."""
    found: dict[str, Any] = inspection[family]["tensors"]
    return found


def test_first_tensor_has_the_described_shape(tensors: dict[str, Any], family: str) -> None:
    described = families.get(family)
    assert tensors[described.first_tensor]["shape"] == [*described.first_shape]


def test_patch_embedding_of_the_seed_failure(inspection: dict[str, Any]) -> None:
    assert inspection["qwen2_5_vl"]["tensors"][PATCH_EMBED]["shape"] == [1280, 3, 2, 14, 14]


def test_no_tensor_is_as_a_fresh_model_has_it(tensors: dict[str, Any], family: str) -> None:
    """A fresh model's biases are 0 and its norms 1: a tensor that was not loaded would look like one that was."""
    assert any(name.endswith("bias") for name in tensors) or not families.get(family).gathers_pairs
    assert sum("norm" in name for name in tensors) >= 5
    for name, tensor in tensors.items():
        assert tensor["different"] > min(size(tensor["shape"]), 1000) * 0.9, name
        assert tensor["zeros"] + tensor["ones"] < size(tensor["shape"]) * 0.01, name


def test_shards_part_no_module(tensors: dict[str, Any], synthetic: dict[str, Path], family: str) -> None:
    """The gloo race hides where a module's weight and bias are in different shards."""
    assert len({tensor["shard"] for tensor in tensors.values()}) >= 2
    index = json.loads((synthetic[family] / families.get(family).index).read_text())
    assert index["weight_map"] == {name: tensor["shard"] for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        if name.endswith(".bias"):
            assert tensors[name.removesuffix("bias") + "weight"]["shard"] == tensor["shard"]


def test_processor_is_a_working_one(inspection: dict[str, Any], reader: str) -> None:
    found = inspection[reader]
    assert found["texts"] == found["captions"]
    assert len(set(found["captions"])) > 20
    described = families.get(reader)
    if described.vision:
        assert found["values"] >= 16 * math.prod(described.first_shape[1:])  # patches
        assert found["spread"] > 3  # a drawing, and no plain area
    labels = found["labels"]
    answer = [label for label in labels if label != -100]
    # A decoder's labels are the answer alone.
    assert 0 < len(answer) < len(labels) + described.encoder_decoder
    assert labels[-len(answer) :] == answer


# other good runs


def test_given_checkpoint_on_three_ranks(smoke: Starter, synthetic: dict[str, Path], inspection: dict[str, Any]) -> None:
    """A checkpoint from a folder, and a world size that divides nothing evenly."""
    folder, tensors = synthetic["qwen2_5_vl"], inspection["qwen2_5_vl"]["tensors"]
    before = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in folder.iterdir()}
    ended = smoke.run("--zero", "3", "--nproc", "3", "--checkpoint", str(folder))
    assert ended.code == 0, ended.stdout
    assert ended.report["partial"] == "--zero 3"
    assert "\npartial run: --zero 3; it is no proof of an environment\n" in ended.stdout
    assert (ended.report["world_size"], ended.report["checkpoint"]) == (3, str(folder))
    assert [rank["rank"] for rank in ended.found("weights", 3)["ranks"]] == [0, 1, 2]
    held = sum(-(-size(tensor["shape"]) // 3) for tensor in tensors.values())
    assert ended.found("memory", 3)["detail"].startswith(f"{held:,} parameter elements held, ")
    assert {(c["kind"], c["name"]) for c in ended.report["checks"] if c["zero_stage"] == 3} == {
        *(("check", name) for name in STAGED),
        *(("control", name) for name in CONTROLS | CONTROLS_OF_3 | {"later key layout", "gloo race"}),
    }
    assert {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in folder.iterdir()} == before


# Before Python 3.11.4, as in Debian 12, a member of an enum is pickled so.
OLD_ENUM = """
import io, torch
from smoke_tests import runtime
runtime.choose_accelerator("cpu")
runtime.import_deepspeed("cpu")
from deepspeed.runtime.zero.config import ZeroStageEnum
ZeroStageEnum.__reduce_ex__ = lambda self, protocol: (getattr, (type(self), self.name))
runtime.trust_own_checkpoints()
file = io.BytesIO()
torch.save({"zero_stage": ZeroStageEnum.weights}, file)
file.seek(0)
print(torch.load(file, weights_only=True)["zero_stage"].name)
"""


def test_engine_checkpoints_of_older_pythons_are_read(lasting: Starter) -> None:
    assert lasting.inside("-c", OLD_ENUM).splitlines()[-1] == "weights"


def test_spawned_ranks(smoke: Starter) -> None:
    ended = smoke.start("--zero", "2", "--start", "spawn").finish(600)  # each of its twenty processes imports everything
    assert ended.code == 0, ended.stdout
    assert {c["name"] for c in ended.report["checks"] if c["kind"] == "check"} == STAGED | UNSTAGED


def test_one_rank_says_what_it_cannot_show(smoke: Starter, tmp_path: Path) -> None:
    temporary = tmp_path / ("long" * 30)  # longer than a socket's path may be
    temporary.mkdir()
    with socket.socket() as probe:  # one port for all jobs, one after the other
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ended = smoke.run("--zero", "3", "--nproc", "1", "--port", str(port), TMPDIR=str(temporary))
    assert list(temporary.iterdir()) == []
    assert ended.code == 0, ended.stdout
    assert {"load", "mixed modality"} <= {entry["name"] for entry in ended.report["not_run"]}
    assert "not run: mixed modality (requires a rank with text only (gloo x1))\n" in ended.stdout
    assert ended.found("load", 3)["detail"] == "45 parameters partitioned on one rank, float32, waiting for gloo gathers"
    names = {c["name"] for c in ended.report["checks"] if c["kind"] == "check"}
    assert {"collectives", "memory", "mixed modality", "mixed modality: dummy image"} == (STAGED | UNSTAGED) - names


def test_two_legs(smoke: Starter, schema: jsonschema.Draft202012Validator) -> None:
    """As on one GPU: all that one rank shows, and all that two show, in one report that says which is which."""
    ended = smoke.run("--zero", "3", sabotage=("one_rank_and_two",))
    assert ended.code == 0, ended.stdout
    schema.validate(ended.report)
    assert [(leg["name"], leg["world_size"]) for leg in ended.report["legs"]] == [("gloo x1", 1), ("gloo x2", 2)]
    assert ended.report["world_size"] == 1
    found = {(c["name"], c.get("leg")) for c in ended.report["checks"] if c["kind"] == "check"}
    assert {name for name, leg in found if leg == "gloo x2"} == STAGED | {"plain run"}
    several = {"collectives", "memory", "mixed modality", "mixed modality: dummy image"}
    assert {name for name, leg in found if leg == "gloo x1"} == STAGED - several | {"plain run"}
    assert {name for name, leg in found if leg is None} == {"checkpoint", "auto classes"}
    for check in ended.report["checks"]:
        assert len(check["ranks"]) == (2 if check.get("leg") == "gloo x2" and check["zero_stage"] else 1) or (
            check["name"] == "consolidated weights"
        )
    assert {entry["leg"] for entry in ended.report["not_run"] if "leg" in entry} == {"gloo x1"}
