import dataclasses
import json
import math
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from msgspec import inspect

from hedgerow.core.config import Config
from hedgerow.core.configcheck import parse_config
from hedgerow.core.describe import in_words
from hedgerow.core.errors import ConfigError
from hedgerow.runtime.configfile import find_config, load_config, packaged_configs, write_config

SMALLEST = {"data": {"source": "digits"}}
APART = {"test_inputs": "a", "test_targets": "b"}


@dataclasses.dataclass(frozen=True)
class Key:
    table: str
    name: str
    kind: inspect.Type

    @property
    def path(self) -> str:
        return f"{self.table}.{self.name}"


def every_key() -> Iterator[Key]:
    whole = inspect.type_info(Config)
    assert isinstance(whole, inspect.StructType)
    for table in whole.fields:
        assert isinstance(table.type, inspect.StructType)
        for field in table.type.fields:
            yield Key(table.encode_name, field.encode_name, field.type)


KEYS = list(every_key())
TABLES = sorted({key.table for key in KEYS})


def with_value(key: Key, value: object) -> dict[str, Any]:
    raw: dict[str, Any] = {"data": dict(SMALLEST["data"])}
    raw.setdefault(key.table, {})[key.name] = value
    return raw


def accepts(kind: inspect.Type, value: object) -> bool:
    """An independent reading of what a key may hold, by type alone."""
    match kind:
        case inspect.UnionType(types=types):
            return any(accepts(one, value) for one in types)
        case inspect.NoneType():
            return value is None
        case inspect.BoolType():
            return isinstance(value, bool)
        case inspect.IntType():
            return isinstance(value, int) and not isinstance(value, bool)
        case inspect.FloatType():
            return isinstance(value, int | float) and not isinstance(value, bool)
        case inspect.StrType() | inspect.LiteralType():
            return isinstance(value, str)
        case inspect.ListType(item_type=item):
            return isinstance(value, list) and all(accepts(item, entry) for entry in value)
        case _:
            return isinstance(value, dict)


values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
    st.lists(st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False)), min_size=1),
    st.dictionaries(st.text(max_size=4), st.integers(), max_size=2),
)


@given(key=st.sampled_from(KEYS), value=values)
def test_a_value_of_a_wrong_type_is_refused_with_its_dotted_path(key: Key, value: object) -> None:
    assume(not accepts(key.kind, value))
    with pytest.raises(ConfigError) as caught:
        parse_config(with_value(key, value))
    assert str(caught.value).startswith(key.path)
    assert "must be" in str(caught.value)


@given(
    table=st.sampled_from(["", *TABLES]),
    name=st.text(st.characters(categories=["L", "N"], include_characters="_- "), min_size=1),
)
def test_an_unknown_key_is_refused_with_its_dotted_path_and_what_is_known(
    table: str, name: str
) -> None:
    raw: dict[str, Any] = {"data": dict(SMALLEST["data"])}
    known = [key.name for key in KEYS if key.table == table] if table else TABLES
    assume(name not in known)
    (raw.setdefault(table, {}) if table else raw)[name] = {}
    with pytest.raises(ConfigError) as caught:
        parse_config(raw)
    assert str(caught.value).startswith(f"{table}.{name}:" if table else f"{name}:")
    assert all(key in str(caught.value) for key in known)


@pytest.mark.parametrize("table", TABLES)
def test_a_table_that_is_no_table_is_refused(table: str) -> None:
    with pytest.raises(ConfigError, match=f"^{table}: 3 is not accepted; it must be a table"):
        parse_config({**SMALLEST, table: 3})


@pytest.mark.parametrize("key", [k for k in KEYS if isinstance(k.kind, inspect.FloatType)])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_are_finite(key: Key, value: float) -> None:
    with pytest.raises(ConfigError, match=f"^{key.path}: "):
        parse_config(with_value(key, value))


def test_a_misspelt_key_names_the_closest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'learning_rate'"):
        parse_config({**SMALLEST, "training": {"learing_rate": 0.1}})


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        ({"fine": {}, "small": {"passes": 0}}, r"small.passes: 0 .*a whole number above 0"),
        ({"fine": {}, "small": {"pases": 1}}, r"small.pases: is not a known.* mean 'passes'"),
        ({"fine": {}, "small": 3}, r"small: 3 is not accepted; it must be a table"),
        ({"fine": {}, "Small": {}}, r"Small: 'Small' is not accepted as a name; .*lower-case"),
    ],
)
def test_faults_in_tables_of_free_names_are_found(classes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=rf"^training.memory_classes.{said}"):
        parse_config({**SMALLEST, "training": {"memory_classes": classes}})


def test_a_missing_source_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^data.source: is missing"):
        parse_config({"data": {}})


def test_the_smallest_configuration_is_enough() -> None:
    assert parse_config(SMALLEST).fleet.nodes == 8


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"fleet": {"nodes": 1, "gateways": 2}}, "fleet.gateways: 2"),
        ({"plan": {}}, "plan: set exactly one"),
        ({"plan": {"last_layers": 1, "preset": "all"}}, r"plan: .*\(got 2\)"),
        (
            {"plan": {"units": ["a", "b"], "personal": ["b"]}},
            "plan.personal: 'b' is in plan.units, too",
        ),
        ({"broker": {"tls": True, "kind": "external", "port": 1, "cert_file": "c"}}, "key_file"),
        ({"broker": {"tls": True}}, "broker.server_cert_file"),
        ({"broker": {"ca_file": "c"}}, "broker.ca_file: 'c' is unused"),
        ({"broker": {"password": "p"}}, "broker.username"),
        ({"broker": {"kind": "external"}}, "broker.port: 0"),
        ({"broker": {"kind": "embedded", "protocol": "5"}}, "broker.protocol"),
        ({"broker": {"chunk_bytes": 4096, "max_packet_bytes": 4096}}, "broker.chunk_bytes: 4096"),
        ({"http": {"key_file": "k"}}, "http.cert_file"),
        ({"http": {"url": "example.org"}}, "http.url: 'example.org'"),
        ({"data": {"source": "x.npz", "split": "group"}}, "data.group"),
        ({"data": {"source": "x.csv", "held_out_groups": [3]}}, "data.group"),
        ({"data": {"source": "x.csv", "smallest_group": 3}}, "data.group: ''"),
        ({"data": {"source": "x.npz", "files": ["a"]}}, r"data.files: \['a'\] is unused"),
        ({"data": {"source": "x.npz", "test_inputs": "a"}}, "data.test_targets: ''"),
        ({"data": {"source": "digits", **APART}}, "data.test_inputs: 'a' names an array"),
        (
            {"data": {"source": "x.npz", "test_mask": "m", **APART}},
            "data.test_mask: 'm' does not go with data.test_inputs",
        ),
        (
            {"data": {"source": "x.npz", "group": "g", "held_out_groups": [1], **APART}},
            "data.held_out_groups",
        ),
        ({"data": {"source": "x.npz", "baseline": "b", **APART}}, "data.baseline: 'b'"),
        (
            {"data": {"source": "x", "input_scale": [1.0], "input_offset": [0.0, 1.0]}},
            "data.input_offset: has 2",
        ),
        ({"node": {"offline_updates": 9, "outbox_updates": 8}}, "node.offline_updates: 9"),
        ({"gateway": {"flush_count": 9, "held_updates": 8}}, "gateway.flush_count: 9"),
        ({"stop": {"metric": "rmse"}}, "stop.metric: 'rmse'"),
        ({"stop": {"target": 92}}, "stop.target: 92"),
        ({"stop": {"metric": "loss", "target": 1}}, "stop.target: 1.0 for 'loss'"),
    ],
)
def test_contradictions_are_refused(tables: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_config({**SMALLEST, **tables})


def test_all_contradictions_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({**SMALLEST, "fleet": {"nodes": 1, "gateways": 2}, "stop": {"target": 92}})
    assert len(str(caught.value).splitlines()) == 2


def test_a_users_own_task_may_measure_anything() -> None:
    raw = {**SMALLEST, "task": {"name": "mine:task"}, "stop": {"metric": "bleu", "target": 30}}
    assert parse_config(raw).stop.target == 30


def toml(folder: Path, text: str) -> Path:
    path = folder / "fleet.toml"
    path.write_text(text)
    return path


def test_paths_start_at_the_files_folder(tmp_path: Path) -> None:
    text = (
        '[data]\nsource = "sub/x.npz"\n[broker]\ntls = true\nkind = "external"\nport = 8883\n'
        'ca_file = "ca.pem"\n'
    )
    config = load_config(toml(tmp_path, text))
    assert config.data.source == str(tmp_path / "sub/x.npz")
    assert config.broker.ca_file == str(tmp_path / "ca.pem")
    assert config.broker.key_file == ""


def test_files_of_a_function_start_at_the_files_folder_too(tmp_path: Path) -> None:
    text = '[data]\nsource = "own:function"\nfiles = ["../a.npz", "/b.npz"]\n'
    config = load_config(toml(tmp_path, text))
    assert config.data.files == [str(tmp_path / "../a.npz"), "/b.npz"]
    assert config.data.source == "own:function"


def test_secrets_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = toml(tmp_path, '[data]\nsource = "digits"\n[http]\ntoken = "env:HEDGEROW_TEST_TOKEN"\n')
    monkeypatch.setenv("HEDGEROW_TEST_TOKEN", "s3cret")
    assert load_config(path).http.token == "s3cret"  # noqa: S105 - a test's secret
    monkeypatch.delenv("HEDGEROW_TEST_TOKEN")
    with pytest.raises(ConfigError, match=r"http.token: .*HEDGEROW_TEST_TOKEN"):
        load_config(path)


@pytest.mark.parametrize("text", ["[data", "x = 1\nx = 2", "\x00"])
def test_a_file_that_is_not_toml_is_named(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"fleet.toml: is not TOML"):
        load_config(toml(tmp_path, text))


def test_a_missing_file_names_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such file; .*demo"):
        load_config(tmp_path / "none.toml")


def test_written_and_read_back_it_is_the_same_and_private(tmp_path: Path) -> None:
    config = load_config("demo")
    path = tmp_path / "config.json"
    write_config(config, path)
    write_config(config, path)
    assert load_config(path) == config
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads(path.read_text()) == msgspec.to_builtins(config)


@pytest.mark.parametrize("name", sorted(packaged_configs()))
def test_every_packaged_configuration_is_right(name: str) -> None:
    assert find_config(name).suffix == ".toml"
    assert load_config(name).fleet.nodes > 0


def test_what_nodes_keep_to_themselves_is_said_in_words() -> None:
    config = parse_config(
        {
            "data": {"source": "digits", "split": "shards", "local_test_fraction": 0.25},
            "plan": {"preset": "all", "personal": ["head", "norm.bias"]},
            "training": {"time_budget_s": 20},
        }
    )
    told = "\n".join(in_words(config))
    assert "nodes train every unit; each keeps its own head, norm.bias: trained, never sent" in told
    assert "each node tests on 25% of its own" in told
    assert "as many steps as fit into 20 s" in told
    plain = "\n".join(in_words(parse_config(SMALLEST)))
    assert not any(said in plain for said in ("each keeps", "each node tests", "fit into"))
