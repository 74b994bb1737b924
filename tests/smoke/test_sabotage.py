"""Each check fails when what it tests is broken, and each control fails the run when it detects nothing.

Independent sabotages share a run, so each run also shows that a failure does not spread to other checks.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from smokehouse_loader.failures import BY_NAME

from .conftest import NAME, ROOT, Ended, Starter

BOTH = (0, 1)
SOME = r"differs in \d+ of the \d+ elements held here"
LATE = rf"with late gathers \d+ tensors are wrong: \S+ {SOME}$"


def assert_failed(ended: Ended, name: str, stage: int | None, ranks: tuple[int, ...], detail: str, kind: str = "check") -> None:
    """Check that it failed on exactly `ranks`, each with a detail that matches `detail`."""
    entry = ended.found(name, stage, kind)
    assert entry["verdict"] == "failed", entry
    said = {rank["rank"]: rank["detail"] for rank in entry["ranks"] if rank["verdict"] == "failed"}
    assert tuple(said) == ranks, entry
    for text in [*said.values(), entry["detail"]]:
        assert re.search(detail, text), text


def assert_failures(ended: Ended, *, checks: set[tuple[str, int | None]], controls: set[tuple[str, int | None]]) -> None:
    """Check for exit code 1, and that exactly these checks and controls failed."""
    assert ended.code == 1, ended.stderr
    assert ended.report["verdict"] == "failed"
    assert ended.report["failure"] == ""
    wanted = {("check", *check) for check in checks} | {("control", *control) for control in controls}
    assert ended.failures() == wanted
    assert re.search(rf"^FAILED( \(partial\))?  {re.escape(ended.name)}: ", ended.stdout, re.MULTILINE)


def edited_lock(root: Path, folder: Path) -> Path:
    """Write a lock with another babel, one package more and one less than is installed."""
    lock = folder / "lock"
    lock.mkdir()
    text = (root / "lockfiles" / NAME / "requirements.txt").read_text()
    assert re.search(r"^openai==", text, re.MULTILINE)
    text = re.sub(r"^babel==\S+", "babel==99.1", text, flags=re.MULTILINE)
    text = re.sub(r"^openai==(.*\n +)*.*\n", "", text, flags=re.MULTILINE)
    (lock / "requirements.txt").write_text(text + "never-installed==1.0\n")
    return lock


OVERRIDES = """\
[expectations]
gloo_race = "fixed"
later_key_layout = "whole"
auto_classes.AutoModelForCausalLM = "whole"
"""


def edited_stack(root: Path, folder: Path) -> Path:
    """Write a stack.toml that expects another result of one auto class, and that what later versions fixed is fixed."""
    text = (root / "environments" / NAME / "stack.toml").read_text()
    assert "expectations" not in text
    stack = folder / "stack.toml"
    stack.write_text(f"{text}\n{OVERRIDES}")
    return stack


@pytest.fixture(scope="module")
def broken(lasting: Starter, root: Path) -> Ended:
    """Return a run in which what most checks test is broken, and nothing else."""
    folder = lasting.folder / "edited"
    folder.mkdir()
    return lasting.run(
        *("--lock", str(edited_lock(root, folder)), "--stack", str(edited_stack(root, folder))),
        report=lasting.folder / "broken",
        sabotage=(
            *("edited_file", "collectives", "dropped_config", "clipped_gradients", "lost_optimizer_states"),
            *("spoiled_consolidation", "bf16_off", "gathered_elements", "labelled_dummy", "stuttering"),
        ),
    )


@pytest.fixture(scope="module")
def misled(lasting: Starter) -> Ended:
    """Return a run in which weights and training are broken, which other checks have to notice too."""
    return lasting.run(
        report=lasting.folder / "misled",
        sabotage=(
            *("changed_element", "lost_key", "negated_norm", "detached_vision", "no_learning", "no_learning_in_plain_run"),
            "obliging_data",
        ),
    )


def test_exactly_what_was_broken_fails(broken: Ended) -> None:
    both = {
        *("versions", "collectives", "parity", "resume", "mixed modality: dummy image", "bf16", "consolidated weights"),
        *("both key layouts", "generate"),
    }
    checks: set[tuple[str, int | None]] = {(name, stage) for name in both for stage in (2, 3)}
    checks |= {("plain run", None), ("auto classes", None), ("load", 3), ("memory", 3), ("late gathers", 3)}
    assert_failures(broken, checks=checks, controls=set())


@pytest.mark.parametrize("stage", [2, 3])
class TestBroken:
    """One check each, in both stages."""

    def test_versions(self, broken: Ended, stage: int) -> None:
        lock = r"never-installed: expected 1\.0, not installed; openai: not in the lock, found \S+; "
        assert_failed(broken, "versions", stage, BOTH, lock + r"babel: expected 99\.1, found \S+")
        edited = r"/transformers/models/qwen2_5_vl/modeling_qwen2_5_vl\.py was edited after it was installed"
        details = [bool(re.search(edited, rank["detail"])) for rank in broken.found("versions", stage)["ranks"]]
        assert details == [False, True]

    def test_collectives(self, broken: Ended, stage: int) -> None:
        names = ["all_reduce", "all_gather", "reduce_scatter", "broadcast from rank 0"]
        which, more = ("", 6) if stage == 2 else (" in bf16", 1)
        wrong = "; ".join(rf"{name}{which}: 1 of \d+ numbers are wrong" for name in names)
        assert_failed(broken, "collectives", stage, (1,), rf"^(rank 1: )?{wrong}; and {more} more$")

    def test_parity(self, broken: Ended, stage: int) -> None:
        assert_failed(
            broken, "parity", stage, BOTH, r"losses: expected \S+ \S+ \S+ \(single process\), found \S+ \S+ \S+; off by "
        )
        assert broken.found("train", stage)["verdict"] == "passed"  # a falling loss alone proves nothing

    def test_resume(self, broken: Ended, stage: int) -> None:
        # The first loss is equal even so: it comes before the optimizer's first step.
        assert_failed(broken, "resume", stage, BOTH, r"^(rank 0: )?loss 2 after the resume: expected \S+, found \S+$")

    def test_workaround_for_mixed_modality(self, broken: Ended, stage: int) -> None:
        wrong = r"the gradient of \S+ is off by \S+ of its largest element, at most 0\.001 allowed"
        assert_failed(broken, "mixed modality: dummy image", stage, BOTH, wrong)

    def test_bf16(self, broken: Ended, stage: int) -> None:
        # Under ZeRO-3 the rank holds half of the 64 elements.
        wrong = rf"model\.norm\.weight differs in 1 of the {64 if stage == 2 else 32} elements held here"
        assert_failed(broken, "bf16", stage, (1,), wrong)

    def test_consolidated_weights(self, broken: Ended, stage: int) -> None:
        which = "zero2-16bit" if stage == 2 else "zero3-32bit"
        assert_failed(broken, "consolidated weights", stage, (0,), rf"^{which}: model\.norm\.weight differs$")


def test_generation_without_variety(broken: Ended) -> None:
    alike = r"^the greedy tokens \[5(, 5){7}\] are too similar to tell two models apart$"
    assert_failed(broken, "plain run", None, (0,), alike)


@pytest.mark.parametrize("stage", [2, 3])
def test_key_layout_that_this_stack_cannot_read(broken: Ended, stage: int) -> None:
    lost = (
        r"^(rank 0: )?later keys: \d+ missing keys \(.*\); later keys: \d+ unexpected keys \(.*\); later keys: .* differs in "
    )
    assert_failed(broken, "both key layouts", stage, BOTH, lost)


def test_race_that_this_stack_has(broken: Ended) -> None:
    """Detect the real race, of DeepSpeed 0.15.4."""
    assert_failed(broken, "late gathers", 3, BOTH, LATE)


@pytest.fixture(scope="module")
def unfixed(latest: Starter) -> Ended:
    """Return a run on the latest stack in which what upstream fixed is broken again."""
    return latest.run("--zero", "3", sabotage=("unwaited_gathers", "swapped_layers"))


def test_fixes_that_are_lost(unfixed: Ended) -> None:
    assert_failures(unfixed, checks={("late gathers", 3), ("both key layouts", 3)}, controls=set())
    assert_failed(unfixed, "late gathers", 3, BOTH, LATE)
    # No key is missing, and still every tensor of both layers is another's.
    swapped = (
        r"^(rank 0: )?published keys: model\.layers\.[01]\.\S+ differs in \d+ of the \d+ elements held here; .*; and \d+ more$"
    )
    assert_failed(unfixed, "both key layouts", 3, BOTH, swapped)


def test_family_that_does_not_fit_its_model(smoke: Starter) -> None:
    ended = smoke.run("--zero", "2", sabotage=("wrong_tower",))
    assert ended.code == 1
    wrong = r"^ValueError: smoke_tests/families/qwen2_5_vl\.py: 'visual\.\S+' is outside 'vision\.'; fix vision.tower \(log: "
    assert_failed(ended, "checkpoint", None, (0,), wrong)
    assert {c["verdict"] for c in ended.report["checks"]} == {"failed"}


def test_load(broken: Ended) -> None:
    found = r"expected a partitioned parameter under ZeRO-3, found a whole one, and 44 more"
    whole = rf"visual\.patch_embed\.proj\.weight: {found}; \w.* \[not-partitioned\]$"
    assert_failed(broken, "load", 3, BOTH, whole)


def test_memory(broken: Ended) -> None:
    # 320 elements on each of two ranks would be 160; these are whole, and their partition is still there.
    assert_failed(broken, "memory", 3, BOTH, r"visual\.\S+ holds 320 \+ 160 of 320 elements")


def test_auto_classes(broken: Ended) -> None:
    wrong = r"^AutoModelForCausalLM: expected whole \(measured\.py or stack\.toml\), found refused$"
    assert_failed(broken, "auto classes", None, (0,), wrong)


def test_report_is_of_the_lock_it_was_given(broken: Ended, lasting: Starter) -> None:
    lock = lasting.folder / "edited" / "lock" / "requirements.txt"
    assert broken.report["lock"] == {"requirements.txt": hashlib.sha256(lock.read_bytes()).hexdigest()}


def test_weights(misled: Ended) -> None:
    assert_failed(misled, "weights", 3, (1,), r"^(rank 1: )?model\.norm\.weight differs in 1 of the 32 elements held here$")
    missing = r"model\.layers\.1\.self_attn\.q_proj\.bias"
    assert_failed(
        misled, "weights", 2, BOTH, rf"1 missing keys \({missing}\); {missing} differs in 64 of the 64 elements held here"
    )


def test_generate(misled: Ended) -> None:
    assert_failed(misled, "generate", 3, BOTH, r"tokens: expected \[.*\] \(unpartitioned model\), found \[.*\]")


def test_train(misled: Ended) -> None:
    nothing = r"^(rank 0: )?no gradient reaches visual\.patch_embed\.proj\.weight: its norm is 0\.0$"
    assert_failed(misled, "train", 3, BOTH, nothing)
    assert_failed(misled, "train", 2, BOTH, r"^(rank 0: )?the loss does not fall: (\S+) \2 \2$")


def test_plain_run(misled: Ended) -> None:
    assert_failed(misled, "plain run", None, (0,), r"^the loss does not fall: (\S+) \1 \1$")


def test_mixed_modality_that_completes(misled: Ended) -> None:
    """It may also complete, and only the gradients show whether rightly."""
    wrong, right = misled.found("mixed modality", 2), misled.found("mixed modality", 3)
    assert [rank["verdict"] for rank in wrong["ranks"]] == ["known-issue"] * 2
    assert re.match(r"rank 0: completes with wrong gradients: the gradient of \S+ is off by ", wrong["detail"])
    assert wrong["diagnosis"].endswith(f"Fix: {BY_NAME['mixed-modality'].cure}.")
    assert [rank["verdict"] for rank in right["ranks"]] == ["passed"] * 2
    assert right["detail"] == "completes with the gradients of a plain run"


def test_what_misleads_does_not_spread(misled: Ended) -> None:
    untouched = {"versions", "collectives", "load", "resume", "memory", "bf16", "consolidated weights"}
    verdicts = {misled.found(name, stage)["verdict"] for name in untouched for stage in (2, 3)}
    assert verdicts == {"passed"}
    assert {kind for kind, _, _ in misled.failures()} == {"check"}


@pytest.mark.parametrize(
    ("fault", "stage", "whole"), [("zero1_as_zero2", 1, ()), ("no_zero", 0, ("gradient", "master", "moment"))]
)
def test_another_stage_than_was_asked_for(smoke: Starter, fault: str, stage: int, whole: tuple[str, ...]) -> None:
    """The engine admits it, and without ZeRO what each rank holds shows it. ZeRO-1 drops its before the step."""
    ended = smoke.run("--zero", "2", "--only", "memory", sabotage=(fault,))
    parts = [rf"[\d,]+ (?P<{what}>{what}) elements held, a rank's share of [\d,]+ is [\d,]+" for what in whole]
    assert_failed(ended, "memory", 2, BOTH, "; ".join([rf"expected ZeRO stage 2, the engine runs {stage}", *parts]) + "$")


def test_choice_that_is_not_clear(smoke: Starter) -> None:
    ended = smoke.run("--zero", "2", "--only", "plain run", sabotage=("unclear_choice",))
    unclear = (
        r"greedy tokens: expected 2 or more clear choices, found 0: their logits lead by 0\.00\d+ \S+ …, a clear one by 0\.01$"
    )
    assert_failed(ended, "plain run", None, (0,), unclear)


def test_loss_that_is_averaged_over_padding(smoke: Starter) -> None:
    """Every other check compares it with itself."""
    ended = smoke.run("--zero", "2", "--only", "plain run", sabotage=("averaged_over_padding",))
    wrong = r"the model's loss of the first sample: expected 8\.\d+, the mean over its labels, found 0\.\d+$"
    assert_failed(ended, "plain run", None, (0,), wrong)


def test_moments_in_bf16(smoke: Starter) -> None:
    ended = smoke.run("--zero", "3", "--only", "bf16", sabotage=("coarse_moments",))
    assert ended.failures() == {("check", "bf16", 3)}
    assert_failed(ended, "bf16", 3, BOTH, r"^(rank 0: )?moments: expected torch\.float32, found torch\.bfloat16$")


def test_gradient_of_one_rank_in_eight_that_is_lost(smoke: Starter) -> None:
    """In bf16, whose tolerance is the larger one."""
    ended = smoke.run("--zero", "2", "--only", "parity", "--nproc", "8", sabotage=("main_runs_in_bf16", "lost_gradient"))
    assert_failed(
        ended, "train", 2, tuple(range(8)), r"gradients: off by \S+ of those of a single process, at most 1e-01 allowed$"
    )


def test_learning_rate_that_is_a_fifth_too_large(smoke: Starter) -> None:
    ended = smoke.run("--zero", "2", "--only", "parity", sabotage=("main_runs_in_bf16", "fast_learning"))
    assert ended.found("train", 2)["verdict"] == "passed"
    assert_failed(ended, "parity", 2, BOTH, r"weights: moved 1\.\d+ times as far as in a single process, ")


def test_a_large_model_is_compared_without_an_optimizer_in_one_process(smoke: Starter) -> None:
    ended = smoke.run("--zero", "3", sabotage=("large_model",))
    assert (ended.code, ended.stderr) == (0, "")
    assert ended.found("parity", 3)["detail"].endswith("of a single process in the first step")
    assert len(ended.found("train", 3)["ranks"]) == 2
    assert ended.found("mixed modality: dummy image", 3)["verdict"] == "passed"


def test_losses_are_compared_over_the_steps_that_the_reference_has(lasting: Starter) -> None:
    code = "from smoke_tests.checks import training; print(training.off_by({}, {}))"
    assert lasting.inside("-c", code.format([7.0, 6.0], [7.0, 6.5])) == "0.5\n"
    assert lasting.inside("-c", code.format([7.0], [7.25, 6.0, 5.0])) == "0.25\n"


def test_checkpoint_that_cannot_be_made(smoke: Starter) -> None:
    ended = smoke.run("--zero", "2", sabotage=("unwritable_checkpoint",))
    assert ended.code == 1
    assert_failed(ended, "checkpoint", None, (0,), r"OSError: \[Errno 28\] No space left on device")
    assert {c["verdict"] for c in ended.report["checks"]} == {"failed"}
    assert "not reached" in ended.found("train", 2)["detail"]
    assert "Traceback" not in ended.stderr


def test_rank_that_raises(smoke: Starter) -> None:
    """The rank that raised and the one that waited for it each have a verdict, and independent jobs run on."""
    ended = smoke.run("--zero", "2", sabotage=("raising_rank",))
    assert ended.code == 1
    waiting, raised = ended.found("train", 2)["ranks"]
    assert (waiting["verdict"], raised["verdict"]) == ("failed", "failed")
    log = ended.folder / "logs" / "zero2" / "rank1.log"
    assert raised["detail"] == f"RuntimeError: rank 1 has had enough (log: {log})"
    assert "RuntimeError: rank 1 has had enough" in log.read_text()
    unreached = {"memory", "resume", "consolidated weights", "bf16", "mixed modality", "mixed modality: dummy image"}
    lost = {("check", name, 2) for name in unreached | {"train", "parity"}}
    assert ended.failures() == lost
    for name in unreached:
        assert "not reached" in ended.found(name, 2)["detail"]


def test_traceback_that_names_a_known_failure(smoke: Starter) -> None:
    """A rank reports the last line of a traceback alone; its log says which known failure it is."""
    ended = smoke.run("--zero", "3", "--only", "generate", sabotage=("read_empty_weight",))
    assert_failed(ended, "generate", 3, (0, 1), r"IndexError: Dimension out of range .* \(log: .*rank\d\.log\)")
    said = ended.found("generate", 3)["diagnosis"]
    assert said.startswith("partitioned-parameter-used: Under ZeRO-3 a parameter was used outside")
    assert said in " ".join(ended.stdout.split())
    # What only followed has no traceback of its own.
    assert {check["diagnosis"] for check in ended.report["checks"] if "not reached" in check["detail"]} <= {""}


def test_mixed_modality_that_hangs(smoke: Starter) -> None:
    """A hang is detected, reported with the stack of each hung rank, and does not end the run."""
    ended = smoke.run("--zero", "2", sabotage=("hanging_text_rank",))
    assert ended.code == 0, ended.stdout
    entry = ended.found("mixed modality", 2)
    assert entry["verdict"] == "known-issue"
    waiting, frozen = entry["ranks"]
    assert re.match(r"hangs: rank 1 hangs in zero-2 / mixed modality for 3 s, at ", frozen["detail"])
    assert "sabotage.py" in frozen["detail"]
    assert re.match(r"hangs: rank 0 hangs in zero-2 / mixed modality for 3 s, at ", waiting["detail"])
    stack = (ended.folder / "logs" / "zero2-fresh" / "rank0.stack").read_text()
    assert re.search(r"checks/mixed_modality\.py\W.* in text_only_ranks$", stack, re.MULTILINE)


def test_mixed_modality_that_loads_for_long(smoke: Starter) -> None:
    """A large checkpoint is no hang."""
    ended = smoke.run("--zero", "3", "--only", "mixed modality", sabotage=("slow_loading",))
    entry = ended.found("mixed modality", 3)
    assert entry["verdict"] in ("known-issue", "passed"), entry
    assert "hangs" not in entry["detail"]
    assert entry["seconds"] > 6.0


@pytest.mark.parametrize(
    ("fault", "how"),
    [
        ("stopped_text_rank", r"rank 1 is stopped \(SIGSTOP\) in .*; expected no such end$"),
        ("killed_text_rank", r"dies: killed by signal 9 \(SIGKILL\); expected no such end$"),
        ("aborted_text_rank", r"dies: killed by signal 6 \(SIGABRT\); expected no such end$"),
    ],
)
def test_mixed_modality_ended_from_outside(smoke: Starter, fault: str, how: str) -> None:
    """A rank that a person or the kernel ends is no sign of the known issue."""
    ended = smoke.run("--zero", "2", "--only", "mixed modality", sabotage=(fault,))
    assert ended.code == 1
    entry = ended.found("mixed modality", 2)
    assert entry["verdict"] == "failed"
    assert re.search(how, entry["ranks"][1]["detail"])


def test_mixed_modality_is_known_by_what_gloo_says(smoke: Starter) -> None:
    """Whatever signal the process then ends by: gloo's error is the sign of the known issue."""
    ended = smoke.run("--zero", "2", "--only", "mixed modality", sabotage=("broken_abort",))
    entry = ended.found("mixed modality", 2)
    assert entry["ranks"][1]["detail"] == "dies of gloo::EnforceNotMet: killed by signal 11 (SIGSEGV)"
    assert (ended.code, entry["verdict"]) == (0, "known-issue")


def test_wrong_shape_that_hangs_is_not_detected(smoke: Starter) -> None:
    ended = smoke.run("--zero", "3", "--only", "wrong shape", sabotage=("hanging_shape",))
    assert ended.code == 1
    entry = ended.found("wrong shape", 3, "control")
    assert re.match(
        r"hangs: rank 0 hangs in zero-3 / wrong shape for 3 s, .*; expected rank 0 to report$", entry["ranks"][0]["detail"]
    )


def test_controls_without_their_failures(smoke: Starter) -> None:
    """What a control injects does not fail: each reports that it detected nothing, which fails the run."""
    ended = smoke.run(sabotage=("no_damage", "no_seed_failure", "no_race", "no_other_stage"))
    both = {"missing key", "later key layout", "flipped bit", "truncated shard", "wrong shape"}
    controls: set[tuple[str, int | None]] = {(name, stage) for name in both for stage in (2, 3)}
    three = {("gloo race", 3), ("seed failure: load_state_dict", 3), ("seed failure: zero.Init", 3)}
    two = {("ZeRO-1 in place of ZeRO-2", 2), ("no ZeRO", 2)}
    assert_failures(ended, checks=set(), controls=controls | two | three)

    loaded = "not detected: the checkpoint loaded without an error"
    for stage in (2, 3):
        assert_failed(ended, "missing key", stage, BOTH, r"not detected: \[\], wrong tensors \[\], logged \[\]", "control")
        assert_failed(
            ended, "later key layout", stage, BOTH, r"not detected: 0 tensors wrong, no key reported, logged \[\]", "control"
        )
        assert_failed(ended, "truncated shard", stage, BOTH, loaded, "control")
        # Under ZeRO-3 the other rank does not hold the bit and has nothing to detect.
        [owner] = [rank for rank in ended.found("flipped bit", 3, "control")["ranks"] if rank["verdict"] == "failed"]
        ranks = BOTH if stage == 2 else (owner["rank"],)
        assert_failed(ended, "flipped bit", stage, ranks, r"not detected: wrong tensors \{\}", "control")
        assert_failed(
            ended, "wrong shape", stage, BOTH, r"not detected: (the checkpoint loaded|loads) without an error", "control"
        )
    for name, whole in {"ZeRO-1 in place of ZeRO-2": "gradient", "no ZeRO": "gradient, master, moment"}.items():
        assert_failed(ended, name, 2, BOTH, f"not detected: {whole}; found nothing$", "control")
    assert_failed(ended, "gloo race", 3, BOTH, "not detected in 3 tries", "control")
    race = BY_NAME["gloo-race"]
    assert ended.found("gloo race", 3, "control")["diagnosis"] == f"gloo-race: {race.cause} Fix: {race.cure}."
    assert_failed(
        ended, "seed failure: load_state_dict", 3, BOTH, "not detected: load_state_dict accepted the checkpoint", "control"
    )
    assert_failed(ended, "seed failure: zero.Init", 3, BOTH, loaded, "control")


def test_blind_comparison_is_detected_by_the_controls(smoke: Starter) -> None:
    """A comparison that finds everything equal passes every check, and is detected by the controls alone."""
    ended = smoke.run(sabotage=("blind_comparison",))
    both = {"missing key", "later key layout", "flipped bit"}
    controls: set[tuple[str, int | None]] = {(name, stage) for name in both for stage in (2, 3)}
    assert_failures(ended, checks=set(), controls=controls | {("gloo race", 3), ("wrong shape", 3)})
    assert_failed(ended, "gloo race", 3, BOTH, "not detected in 3 tries", "control")
    # Rank 0 reads the shape from the file; on the others only the comparison could detect it.
    assert_failed(ended, "wrong shape", 3, (1,), r"not detected: loads without an error, wrong tensors \{\}", "control")


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (
            "blind_shares",
            r"not detected: (gradient|gradient, master, moment); found expected ZeRO stage 2, the engine runs [01]$",
        ),
        ("blamed_shares", "expected no difference under ZeRO-2, found 7 gradient elements held, a rank's share of 6 is 3$"),
    ],
)
def test_share_that_is_not_counted_is_detected_by_the_controls(smoke: Starter, fault: str, said: str) -> None:
    """An engine that admits another stage is no proof that what it holds was counted."""
    names = ("ZeRO-1 in place of ZeRO-2", "no ZeRO")
    ended = smoke.run("--zero", "2", "--only", ",".join(names), sabotage=(fault,))
    assert_failures(ended, checks=set(), controls={(name, 2) for name in names})
    for name in names:
        assert_failed(ended, name, 2, BOTH, said, "control")


INSTALLED = """
import json, pathlib, sys, sysconfig, types
from packaging.version import Version
from smoke_tests import distributions, runtime
from smoke_tests.checks import installed

added = installed.additions.find
imported, installed._imported = installed._imported, lambda found: ([], [])
installed._loader = lambda found: []
runtime.versions = lambda device: {}
backend = ["gloo"]
installed.dist.get_backend = lambda: backend[0]
found = {}
for folder in map(pathlib.Path, sys.argv[1:]):
    sysconfig.get_path = lambda kind: str(folder)
    leg = types.SimpleNamespace(backend="gloo")
    context = types.SimpleNamespace(lock=folder / "lock", device="cpu", leg=leg)
    installed.additions.find = lambda: added(folder)
    found[folder.name] = installed.versions(context, None).detail
backend[0] = "mpi"
found["backend"] = installed.versions(context, None).detail
core = ("torch", "transformers", "deepspeed")
for name in core:
    sys.modules[name] = types.SimpleNamespace(__version__="1.0", __file__=f"/elsewhere/{name}/__init__.py")
present = {name: distributions.Distribution(name, Version("1.0"), pathlib.Path(f"/env/{name}-1.0.dist-info")) for name in core}
found["imported"] = imported(distributions.Installed(present))[0]
print(json.dumps(found))
"""


def test_versions_refuses_what_no_lock_can_specify(lasting: Starter) -> None:
    """A development version, a package twice, one from a path, modules from outside, and another backend than was chosen."""
    folders = {
        "sound": (),
        "added": ("b-2.0",),
        "development": ("b-2.0.dev0",),
        "twice": ("b-2.0", "B-1.5"),
        "path": ("b-2.0",),
        "project": ("b-2.0.dev0",),
        "replaced": ("b-2.0",),
    }
    for name, infos in folders.items():
        folder = lasting.folder / "installed" / name
        (folder / "lock").mkdir(parents=True)
        pins = [f"{info.lower().replace('-', '==')}\n" for info in ("a-1.0", *infos[:1])]
        (folder / "lock" / "requirements.txt").write_text("".join(pins[:1] if name in ("added", "project") else pins))
        if name == "added":
            (folder / "lock" / "added.txt").write_text("b==2.0 --hash=sha256:0\n")
        for info in ("a-1.0", *infos):
            (folder / f"{info}.dist-info").mkdir()
    for name, version in (("path", "2.0"), ("project", "2.0.dev0"), ("replaced", "2.0")):
        (lasting.folder / "installed" / name / f"b-{version}.dist-info" / "direct_url.json").write_text("{}")
        if name != "path":
            record = {"project": {"path": "/work/b", "name": "b", "version": version, "added": []}}
            (lasting.folder / "installed" / name / ".smokehouse.json").write_text(json.dumps(record))
    said = json.loads(lasting.inside("-c", INSTALLED, *(str(lasting.folder / "installed" / name) for name in folders)))
    assert said["sound"] == "1 packages as locked"
    assert said["added"] == "2 packages as locked"
    assert said["backend"].startswith("process group: expected gloo, torch says mpi; ")
    assert "b 2.0.dev0 is a development version" in said["development"]
    assert re.search(r"b is installed twice in \S+ \(1\.5 and 2\.0\)", said["twice"])
    assert said["path"] == "b was installed from a path or a URL, not from the lock"
    assert said["project"] == "1 packages as locked, 1 added beside them"
    # What the lock has cannot be added.
    assert said["replaced"] == said["path"]
    outside = [problem.split()[0] for problem in said["imported"] if "outside /env, where its metadata is" in problem]
    assert outside == ["torch", "transformers", "deepspeed"]


LOADER = """
import json, sys
from smoke_tests import distributions
from smoke_tests.checks import installed
import smokehouse_loader.fit

found = distributions.find(sys.argv[1:] or None)
none = distributions.Installed()
print(json.dumps([installed._loader(found), installed._loader(none), smokehouse_loader.__file__]))
"""


def test_versions_refuses_a_loader_that_is_not_the_checkouts(lasting: Starter, tmp_path: Path) -> None:
    """An edited one, one without a RECORD and none; but not the installed one. An image has no checkout to compare with."""

    def loader(root: Path, *folders: Path) -> list[object]:
        environ = lasting.environ | {"PYTHONPATH": os.pathsep.join(map(str, folders))}
        command = [str(lasting.python), "-c", LOADER, *map(str, folders)]
        ended = subprocess.run(command, cwd=root, env=environ, capture_output=True, text=True, timeout=120)
        assert ended.returncode == 0, ended.stderr
        said: list[object] = json.loads(ended.stdout)
        return said

    again = "install the environment again"
    [site] = lasting.python.parents[1].glob("lib/python3*/site-packages")
    none = [f"smokehouse-loader: expected in every environment, not installed; {again}"]
    assert loader(ROOT) == [[], none, str(site / "smokehouse_loader" / "__init__.py")]
    other, image = tmp_path / "other", tmp_path / "image"
    shutil.copytree(ROOT / "smoke_tests", image / "smoke_tests")
    for name in ("smokehouse_loader", "smokehouse_loader-0.1.0.dist-info"):
        shutil.copytree(site / name, other / name)
    assert loader(image, other)[0] == []
    edited = other / "smokehouse_loader" / "fit.py"
    edited.write_text(edited.read_text() + "# edited\n")
    package = ROOT / "src" / "smokehouse_loader"
    problem = f"smokehouse-loader: expected the same files in {other} as in {package}, found others; {again}"
    linked = ROOT / "packages" / "smokehouse-loader" / "smokehouse_loader" / "__init__.py"
    assert loader(ROOT, other) == [[problem], none, str(linked)]
    assert loader(image, other)[0] == [f"{edited} was edited after it was installed"]
    record = other / "smokehouse_loader-0.1.0.dist-info" / "RECORD"
    record.unlink()
    assert loader(image, other)[0] == [f"smokehouse-loader: expected a RECORD in {record.parent}, found none; {again}"]
