"""The layers and who owns which library (ARCHITECTURE.md), read from the code's own imports."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = [
    {"pipeline.seeding", "pipeline.progress", "pipeline.cores"},
    {"pipeline.atari", "pipeline.agents", "pipeline.datasets"},
    {"pipeline.rl"},
    {"pipeline.report", "pipeline.collect", "pipeline.rederive", "pipeline.evaluate", "pipeline.watch", "pipeline.distill"},
    {"stages"},
]
APART = [{"pipeline.atari", "pipeline.agents", "pipeline.datasets"}]
OWNERS = {
    "gymnasium": {"pipeline.atari", "pipeline.datasets"},  # the latter for Minari alone
    "minari": {"pipeline.datasets"},
    "ale_py": {"pipeline.atari"},
    "zarr": {"pipeline.datasets"},
    "zarrs": {"pipeline.datasets"},
    "numcodecs": {"pipeline.datasets", "pipeline.rl"},
    "fsspec": {"pipeline.datasets"},
    "distributed": {"pipeline.collect", "stages"},
    "dask": {"pipeline.collect", "pipeline.cores", "stages"},
    "torch": {"pipeline.agents", "pipeline.rl", "pipeline.distill", "pipeline.collect", "stages"},
    "pyarrow": {"pipeline.datasets", "pipeline.report", "stages"},
    "onnx": {"pipeline.agents"},
    "onnxscript": {"pipeline.agents"},
    "onnxruntime": {"pipeline.agents"},
    "matplotlib": {"pipeline.report"},
    "imageio_ffmpeg": {"stages"},
    "PIL": {"pipeline.report"},
    "click": {"stages"},
    "pydantic": {"stages"},
    "ruamel": {"stages", "pipeline.datasets"},  # the latter for the .dvc files of strangers
    "rich": {"stages"},
    "dvc": {"stages"},
}


def modules() -> list[Path]:
    return sorted(p for top in ("pipeline", "stages") for p in (ROOT / top).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def unit(module: str) -> str | None:
    """The architectural unit a module belongs to."""
    known = [u for layer in LAYERS for u in layer]
    return next((u for u in known if module == u or module.startswith(u + ".")), None)


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def level(of: str) -> int:
    return next(i for i, layer in enumerate(LAYERS) if of in layer)


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_imports_go_down(path: Path) -> None:
    own = unit(name_of(path))
    if own is None:
        assert name_of(path) == "pipeline.__init__", f"{path} belongs to no layer"
        return
    for imported in imports(path):
        other = unit(imported)
        if other is None or other == own:
            continue
        assert level(other) <= level(own), f"{path} imports {imported}, a layer above"
        assert not any({own, other} <= apart for apart in APART), f"{path}: {own} and {other} must not know each other"
        if own == "pipeline.report":
            assert other == "pipeline.seeding", f"{path}: the report knows only numbers"


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_libraries_have_owners(path: Path) -> None:
    own = unit(name_of(path))
    for imported in imports(path):
        library = imported.split(".")[0]
        if library in OWNERS:
            assert own in OWNERS[library], f"{path}: {library} belongs to {OWNERS[library] or 'nobody'}"


def test_no_module_is_named_after_nothing() -> None:
    forbidden = {"utils", "util", "common", "helpers", "base", "core", "manager", "misc"}
    assert not [p for p in modules() if p.stem in forbidden]
