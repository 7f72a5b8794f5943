"""The whole road on a real ROM, in small: train, collect, mix, distil, evaluate, report, by the commands that dvc.yaml runs."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from stages.cli import main
from tests.browser import ask, look
from tests.fakes import blocks_of_four, edited_params

pytestmark = pytest.mark.end_to_end

STUDENTS = {"kl": {"loss": "kl"}, "mse": {"loss": "mse"}}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """params.yaml of a quick Breakout: an hour's numbers divided by a thousand."""
    folder = tmp_path_factory.mktemp("road")
    with edited_params(folder) as raw:
        teacher = raw["teachers"]["Pong"] | {
            "network": "pqn",
            "steps": 512,
            "select_every": 256,
            "select_episodes": 1,
            "gate_return": 0.0,
            "gate_episodes": 2,
        }
        raw["teachers"] = {"Breakout": teacher}
        raw["environment"]["max_episode_frames"] = 400
        raw["teacher_presets"]["pqn-atari"]["pqn"] |= {"envs": 4, "horizon": 32, "minibatch": 64}
        raw["datasets"] = {"Breakout": raw["datasets"]["Pong"] | {"states": 600}}
        raw["mixes"] = {"small": ["Breakout"]}
        raw["students"] = {
            name: {"temperature": 0.01, "network": "net3", "preset": "fast", "updates": 12, "recipe": 1} | more
            for name, more in STUDENTS.items()
        }
        raw["presets"]["fast"] |= {"batch": 32, "validate_every": 6, "validation_states": 64, "warmup_updates": 2}
        raw["grid"] = {"small": {"students": list(STUDENTS), "seeds": [0]}}
        raw["evaluation"] |= {"episodes": 3, "epsilon": 0.5, "width": 2}
    return folder


def call(project: Path, *arguments: str) -> str:
    result = CliRunner().invoke(main, ["--params", str(project / "params.yaml"), *arguments])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def travelled(project: Path, on_one_worker: tuple[str, str]) -> Path:
    """The project after every command but the report."""
    call(project, "train-teacher", "--game", "breakout")
    card = json.loads((project / "data/teachers/Breakout/card.json").read_text())
    assert {"game", "algorithm", "network", "parameters", "steps", "recipe", "evaluation", "digest", "code"} <= card.keys()
    assert card["evaluation"]["episodes"] == 2
    assert (project / "data/teachers/Breakout/curve.csv").read_text().startswith("steps,frames,updates,episodes,")

    with blocks_of_four():
        call(project, "collect", "--game", "Breakout", *on_one_worker)
    manifest = json.loads((project / "data/datasets/Breakout/manifest.json").read_text())
    assert manifest["states"] == 600
    assert manifest["teacher"]["digest"] == card["digest"]
    assert not list((project / ".work/collect").iterdir())
    call(project, "dataset", "verify", str(project / "data/datasets/Breakout"))

    call(project, "mix", "--mix", "small")
    for name in STUDENTS:
        call(project, "distill", "--student", f"small/{name}")
    student = json.loads((project / "data/students/small/kl-0/card.json").read_text())
    assert student["datasets"][0]["digest"] == manifest["digest"]
    again = student["digest"]
    call(project, "distill", "--student", "small/kl")
    assert json.loads((project / "data/students/small/kl-0/card.json").read_text())["digest"] == again

    for agent in ("teachers/Breakout", "random/Breakout", "students/small/kl-0", "students/small/mse-0"):
        call(project, "evaluate", agent)
        assert (project / f"data/clips/{agent}.mp4").stat().st_size > 1000
    chance = project / "data/episodes/random/Breakout.parquet"
    table = pq.read_table(chance)
    worse = pa.array(table["episode_return"].to_numpy() - 9.0)  # so that this teacher has taught something
    column = table.schema.get_field_index("episode_return")
    pq.write_table(table.set_column(column, "episode_return", worse), chance)
    return project


def test_the_report(travelled: Path, tmp_path: Path) -> None:
    call(travelled, "report")
    rows = json.loads((travelled / "data/report/scores.json").read_text())
    assert [row["role"] for row in rows] == ["teacher", "random", "student", "student"]
    assert {"agent", "game", "variant", "network", "parameters", "seed", "episodes", "mean", "min", "teacher_percent"} <= rows[
        0
    ].keys()
    page = (travelled / "data/report/index.html").read_text()
    assert "epsilon 0.5, up to 30 null-ops" in page
    assert page.count("data:video/mp4") == 3
    assert page.count("data:image/png") >= 1  # an untrained student is of another mind somewhere
    assert "Where they disagree most" in page
    digest = json.loads((travelled / "data/datasets/Breakout/manifest.json").read_text())["digest"]
    assert f">{digest[:12]}<" in page
    assert "teacher, epsilon 0.05" in page
    assert "milliseconds a state" not in page
    seen = look(travelled / "data/report/index.html", tmp_path)
    assert len({tuple(colour) for colour in seen[::7, ::7].reshape(-1, 3).tolist()}) > 20


def test_a_student_of_another_collection_by_the_same_recipe_is_told_of(travelled: Path) -> None:
    """As after `collect` and `mix` on another make of CPU."""
    mix = travelled / "data/mixes/small.json"
    before = mix.read_text()
    digest = json.loads((travelled / "data/datasets/Breakout/manifest.json").read_text())["digest"]
    mix.write_text(before.replace(digest, "0" * 64))
    call(travelled, "report", "--partial", "--paper", str(travelled / "paper.md"))
    told = f"other episodes): small/kl-0, small/mse-0 from Breakout {digest[:12]}."
    assert told in (travelled / "paper.md").read_text()
    assert f"Breakout {digest[:12]}" in (travelled / "data/report/index.html").read_text()
    text = (travelled / "params.yaml").read_text()
    with edited_params(travelled, travelled / "params.yaml") as raw:
        raw["datasets"]["Breakout"]["states"] += 1
    refused = CliRunner().invoke(main, ["--params", str(travelled / "params.yaml"), "report"])
    assert "learned from other data" in refused.stderr
    (travelled / "params.yaml").write_text(text)
    mix.write_text(before)


def reported(project: Path, *options: str) -> str:
    """What `report` says."""
    return CliRunner().invoke(main, ["--params", str(project / "params.yaml"), "report", *options]).stderr


def test_a_student_of_other_data_or_of_other_scores_is_left_out(travelled: Path) -> None:
    """As after a `mix` of a new dataset, a `distill`, or a teacher's evaluation alone, without what follows them."""
    mix, scores = travelled / "data/mixes/small.json", travelled / "data/scores/students/small/kl-0.json"
    teachers = travelled / "data/scores/teachers/Breakout.json"
    both = "small/kl-0, small/mse-0"
    for path, what, instead, told in (
        (mix, '"dataset": "Breakout"', '"dataset": "Other"', f"learned from other data than their mixes name now: {both}"),
        (
            scores,
            json.loads(scores.read_text())["agent_digest"],
            "0" * 64,
            "measured by scores of other agents, seeds or protocols than today's (students/small/kl-0): small/kl-0",
        ),
        (
            teachers,
            json.loads(teachers.read_text())["protocol"]["digest"],
            "0" * 12,
            f"measured by scores of other agents, seeds or protocols than today's (teachers/Breakout): {both}",
        ),
    ):
        before = path.read_text()
        path.write_text(before.replace(what, instead))
        assert f"{told}: `pd-pipeline evaluate` or `dvc repro` makes them anew" in reported(travelled)
        assert f"left out, {told}\n" in reported(travelled, "--partial")
        path.write_text(before)


def test_scores_of_the_ale_that_agents_were_made_with_are_shown_with_another(
    travelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ale_py.__version__", "0.0.1")
    assert "data/report/index.html (" in reported(travelled)


@pytest.mark.parametrize("changed", [{"epsilon": 0.4}, {"seed": 3}])
def test_scores_under_another_protocol_are_neither_shown_nor_taken_for_done(travelled: Path, changed: dict[str, float]) -> None:
    params = travelled / "params.yaml"
    before = params.read_text()
    with edited_params(travelled, params) as raw:
        raw["evaluation"] |= changed
    scores = "random/Breakout, students/small/kl-0, students/small/mse-0, teachers/Breakout"
    assert f"than today's ({scores}): small/kl-0, small/mse-0: `pd-pipeline evaluate`" in reported(travelled)
    assert "no student of the params' grid has been evaluated yet" in reported(travelled, "--partial")
    jobs = json.loads(CliRunner().invoke(main, ["--params", str(params), "plan", "--json"]).stdout)["jobs"]
    assert {job["name"] for job in jobs if not job["done"]} == {
        "random/Breakout",
        "teachers/Breakout",
        "students/small/kl-0",
        "students/small/mse-0",
    }
    params.write_text(before)


def test_a_student_of_other_settings_is_told_of(travelled: Path) -> None:
    text = (travelled / "params.yaml").read_text()
    with edited_params(travelled, travelled / "params.yaml") as raw:
        raw["presets"]["fast"]["learning_rate"] = 1.0
    refused = CliRunner().invoke(main, ["--params", str(travelled / "params.yaml"), "report"])
    call(travelled, "report", "--partial", "--paper", str(travelled / "paper.md"))
    (travelled / "params.yaml").write_text(text)
    assert refused.exit_code == 1
    told = json.loads((travelled / "data/students/small/kl-0/card.json").read_text())["settings"]["learning_rate"]
    assert f"than params.yaml has now: small/kl-0, small/mse-0 (learning_rate {told}): `dvc repro`" in refused.stderr
    page = (travelled / "paper.md").read_text()
    assert (
        f"Learned or scored by earlier settings (learning_rate {told}) and not made anew yet: small/kl-0, small/mse-0.\n"
        in page
    )


def test_the_papers_page_has_rows_of_other_experiments(travelled: Path) -> None:
    """Here the experiment itself, and one of which nothing is there yet."""
    text = (travelled / "params.yaml").read_text()
    (travelled / "apart").mkdir()
    (travelled / "apart/params.yaml").write_text(text)
    (travelled / "other.yaml").write_text(text + "beside: [., apart]\n")
    page = travelled / "paper.md"
    done = CliRunner().invoke(main, ["--params", str(travelled / "other.yaml"), "report", "--paper", str(page)])
    assert done.exit_code == 0, done.output
    assert f"left out, not evaluated yet in {travelled / 'apart'}: small/kl-0, small/mse-0\n" in done.output
    told = page.read_text()
    assert told.count("| Breakout, PQN with LayerNorm teacher | ") == 1
    assert told.count("Breakout, PQN with LayerNorm (1,687,524 parameters)") == 2


LOOK = """
  await new Promise(done => setTimeout(done, 1000));
  const table = [...document.querySelectorAll('table')].find(table => table.textContent.includes('mean return'));
  const head = [...table.querySelectorAll('th')].find(th => th.textContent.startsWith('mean return'));
  const means = () => [...table.tBodies[0].rows].map(row => parseFloat(row.cells[head.cellIndex].textContent));
  head.firstChild.click();
  const up = means();
  head.firstChild.click();
  return {
    up, down: means(), sorted: head.getAttribute('aria-sort'),
    images: [...document.images].map(image => image.complete && image.naturalWidth > 0 && image.alt.length > 0),
    videos: [...document.querySelectorAll('video')].map(v => v.error === null && v.readyState > 1 && v.ariaLabel.length > 0),
    drawings: [...document.querySelectorAll('figure:has(svg)')].map(figure => figure.ariaLabel.length > 20),
    scopes: [...document.querySelectorAll('th')].every(th => th.scope === 'col' && th.firstChild.tagName === 'BUTTON'),
    overflow: document.documentElement.scrollWidth - innerWidth,
    fetched: performance.getEntriesByType('resource').map(entry => entry.name).filter(name => !/^(data|blob):/.test(name)),
  };
"""


def test_the_report_in_a_browser(travelled: Path, tmp_path: Path) -> None:
    """On a phone's width: everything loads, nothing is fetched, tables sort, and what is drawn is told in words."""
    call(travelled, "report")
    seen = ask(travelled / "data/report/index.html", tmp_path, LOOK, width=500)
    assert seen["up"] == sorted(seen["up"])
    assert seen["down"] == sorted(seen["up"], reverse=True)
    assert len(set(seen["up"])) > 1
    assert seen["sorted"] == "descending"
    for what in ("images", "videos", "drawings"):
        assert seen[what]
        assert all(seen[what]), what
    assert seen["scopes"]
    assert seen["overflow"] <= 0
    assert seen["fetched"] == []


def test_the_report_with_other_protocols_marks_and_latency(travelled: Path) -> None:
    """What an evaluation of an agent of another environment and under another protocol writes, is shown."""
    scores = travelled / "data/scores/students/small/kl-0.json"
    before = scores.read_bytes()
    told = json.loads(before)
    scores.write_text(json.dumps(told | {"made_elsewhere": {"ale_py": {"there": "0.1", "here": "0.2"}}}))
    sticky = scores.with_name("kl-0@sticky.json")
    sticky.write_text(json.dumps(told | {"protocol": {"name": "sticky", "digest": "0123456789ab"}}))
    call(travelled, "report", "--latency")
    page = (travelled / "data/report/index.html").read_text()
    assert ">kl-0†<" in page
    assert "ale_py 0.1, here 0.2" in page
    assert "<td>kl-0</td>" in page
    assert ">0123456789ab<" in page
    assert "ms a state, one core" in page
    scores.write_bytes(before)
    sticky.unlink()


def test_teaching_again_is_training_again(travelled: Path) -> None:
    assert not list(travelled.glob(".work/train-teacher/*/checkpoint.pt"))


def test_the_plan_knows_what_is_left(travelled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.plan.PROBE_SECONDS", 0.05)
    assert "8 of 8 done; what is left takes about 0:00" in call(travelled, "plan")
    (travelled / "data/scores/students/small/kl-0.json").rename(travelled / "aside")
    plan = json.loads(call(travelled, "plan", "--json"))
    assert [(job["stage"], job["name"]) for job in plan["jobs"] if not job["done"]] == [("evaluate", "students/small/kl-0")]
    assert plan["seconds_left"] > 0
    (travelled / "aside").rename(travelled / "data/scores/students/small/kl-0.json")


def test_the_report_names_a_missing_cell(travelled: Path) -> None:
    episodes = travelled / "data/episodes/students/small/kl-0.parquet"
    kept = episodes.read_bytes()
    episodes.unlink()
    result = CliRunner().invoke(main, ["--params", str(travelled / "params.yaml"), "report"])
    assert result.exit_code == 1
    assert "pd-pipeline evaluate students/small/kl-0" in result.output
    scores = travelled / "data/scores/students/small/kl-0.json"
    score = scores.read_bytes()
    scores.unlink()
    told = call(travelled, "report", "--partial", "--paper", str(travelled / "paper.md"))
    assert "left out, not evaluated yet: small/kl-0\n" in told
    assert "or were scored otherwise than now: small/kl-0.\n" in (travelled / "paper.md").read_text()
    rows = json.loads((travelled / "data/report/scores.json").read_text())
    assert [row["agent"] for row in rows] == ["teachers/Breakout", "random/Breakout", "students/small/mse-0"]
    scores.write_bytes(score)
    episodes.write_bytes(kept)
    card = travelled / "data/students/small/kl-0/card.json"  # DVC has removed it, and makes it anew
    card.rename(travelled / "aside")
    told = call(travelled, "report", "--partial", "--paper", str(travelled / "paper.md"))
    assert "left out, not evaluated yet: small/kl-0\n" in told
    assert "or were scored otherwise than now: small/kl-0.\n" in (travelled / "paper.md").read_text()
    (travelled / "aside").rename(card)


def test_another_environment_is_refused(travelled: Path) -> None:
    text = (travelled / "params.yaml").read_text()
    other = travelled / "sticky.yaml"
    other.write_text(text.replace("sticky: 0.0", "sticky: 0.25"))
    result = CliRunner().invoke(main, ["--params", str(other), "evaluate", "students/small/kl-0"])
    assert result.exit_code == 1
    assert "another environment" in result.output
    result = CliRunner().invoke(main, ["--params", str(other), "collect", "--game", "Breakout"])
    assert result.exit_code == 1
    assert "sticky" in result.output
