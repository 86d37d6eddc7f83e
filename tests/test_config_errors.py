"""Wrong settings: each is told in one line, all of them together, and no password with them."""

from __future__ import annotations

import dataclasses
import pickle
import sys
import traceback
from pathlib import Path

import pytest
from psycopg.conninfo import make_conninfo

from observatory_storage.config import PoolConfig, PostgresConfig, StorageConfig
from observatory_storage.errors import ConfigurationError
from tests.configuring import bare, problems_of

__all__ = ["bare"]

WRONG_NUMBERS = {
    "DB_PORT": ["0", "70000", "-1", "abc", "5432.5", "nan", "1" * 5000, "5432,x", "true"],
    "DB_MAX_CONNECTIONS": ["0", "-3", "1e3", "nan", "99999999999", "1" * 5000, "many"],
    "DB_POOL_MIN_SIZE": ["-1", "51", "x"],
    "DB_CONNECT_TIMEOUT_SECS": ["0", "-1", "nan", "inf", "1e300", "10s"],
    "DB_IDLE_TIMEOUT_SECS": ["0", "-inf"],
    "DB_POOL_MAX_LIFETIME": ["0", "x"],
    "DB_RETRY_MAX_ATTEMPTS": ["0", "1.5", "1000000"],
    "DB_RETRY_INITIAL_DELAY_MS": ["0", "-5", "1e9"],
    "DB_RETRY_MAX_DELAY_MS": ["99", "0", "99999999999"],
    "DB_RETRY_BACKOFF_MULTIPLIER": ["0", "0.99", "nan", "inf", "1e400", "two"],
    "REDIS_POOL_SIZE": ["0", "x"],
    "REDIS_TIMEOUT_SECS": ["0", "nan"],
    "DB_SSL_MODE": ["on", "REQUIRE", " prefer"],
    "OBSERVATORY_PROJECT": ["x" * 256],
    "OBSERVATORY_RETENTION": [
        "30d",
        "spans=30d",
        "usage=30m",
        "logs=0h",
        "logs:=1d",
        "logs=1d, logs=2d",
        "logs=1y",
        "=",
        "logs=-1d",
    ],
    "OBSERVATORY_PARTITIONS": [
        "day",
        "traces=minute",
        "metrics=day, metric_data_points=hour",
        "spans=day",
        "usage=day",
        "=day",
    ],
}


class TestWrongValues:
    @pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in WRONG_NUMBERS.items() for v in values])
    def test_each_has_one_clear_line(self, name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DB_PASSWORD", "x")
        monkeypatch.setenv(name, value)
        (problem,) = problems_of(StorageConfig.from_env)
        assert problem.startswith(f"{name} is {value[:40]!r}"[:-1])
        assert "; it may hold " in problem
        assert len(problem) < 300

    def test_an_empty_value_is_none(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("DB_PASSWORD", "x")
        expected = StorageConfig.from_env()
        for name in (
            "DATABASE_URL",
            "REDIS_URL",
            "DB_HOST",
            "DB_PORT",
            "DB_USER",
            "DB_SSL_MODE",
            "OBSERVATORY_PROJECT",
        ):
            monkeypatch.setenv(name, "")
        (tmp_path / ".env").write_text("DB_NAME=\nDB_MAX_CONNECTIONS=\n")
        assert StorageConfig.from_env() == expected

    def test_all_are_told_together(self, monkeypatch: pytest.MonkeyPatch) -> None:
        wrong = {name: values[0] for name, values in WRONG_NUMBERS.items()}
        for name, value in wrong.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("DATABASE_URL", "mysql://u:hunter2@h/d")
        monkeypatch.setenv("REDIS_URL", "http://u:hunter2@h")
        told = problems_of(StorageConfig.from_env)
        # The two relations cannot be judged where their other side is wrong itself.
        expected = {*wrong, "DATABASE_URL", "REDIS_URL"} - {"DB_RETRY_MAX_DELAY_MS"}
        assert {line.split()[0] for line in told} == expected
        assert len(told) == len(expected)

    def test_settings_that_do_not_fit_each_other(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DB_PASSWORD", "x")
        monkeypatch.setenv("DB_POOL_MAX_SIZE", "4")
        assert StorageConfig.from_env().pool.min_connections == 4
        monkeypatch.setenv("DB_MIN_CONNECTIONS", "5")
        monkeypatch.setenv("DB_RETRY_INITIAL_DELAY_MS", "200")
        monkeypatch.setenv("DB_RETRY_MAX_DELAY_MS", "100")
        assert problems_of(StorageConfig.from_env) == (
            "DB_MIN_CONNECTIONS is '5'; it may hold at most DB_POOL_MAX_SIZE, which is 4",
            "DB_RETRY_MAX_DELAY_MS is '100'; it may hold no less than DB_RETRY_INITIAL_DELAY_MS, which is 200",
        )

    def test_two_spellings_that_differ(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DB_PASSWORD", "x")
        monkeypatch.setenv("DB_MAX_CONNECTIONS", "10")
        monkeypatch.setenv("DB_POOL_MAX_CONNECTIONS", "10")
        assert StorageConfig.from_env().pool.max_connections == 10
        monkeypatch.setenv("DB_POOL_MAX_SIZE", "11")
        assert problems_of(StorageConfig.from_env) == (
            "DB_MAX_CONNECTIONS and DB_POOL_MAX_SIZE are two spellings of one setting and differ",
        )

    def test_in_a_file_the_section_is_named(self) -> None:
        Path("x.toml").write_text(
            'project = 5\n[postgres]\nport = 70000\npassword = 12345\nssl_mode = true\nhost = ["a"]\n'
            "[pool]\nmax_connections = true\nmin_connections = nan\nidle_timeout_secs = inf\n"
            "[retry]\nmax_attempts = -1\n[redis]\npool_size = 0\n"
        )
        told = problems_of(StorageConfig.from_file, "x.toml")
        assert [line.split(";")[0] for line in told] == [
            "postgres.host is a value of type list",
            "postgres.port is 70000",
            "postgres.password holds a value that is not shown and cannot be used",
            "postgres.ssl_mode is True",
            "redis.pool_size is 0",
            "pool.max_connections is True",
            "pool.min_connections is nan",
            "pool.idle_timeout_secs is inf",
            "retry.max_attempts is -1",
            "project is 5",
        ]

    def test_the_file_is_named_where_there_are_several(self) -> None:
        Path("settings.toml").write_text('[postgres]\npassword = "x"\nport = 0\n[pool]\nmax_conections = 3\n')
        Path(".env").write_text("DB_SSL_MODE=on\nDB_USER='open\n")
        assert [line.split(";")[0] for line in problems_of(StorageConfig.from_env)] == [
            "pool.max_conections in settings.toml is not a setting",
            ".env cannot be read at line 2",
            "postgres.port in settings.toml is 0",
            "DB_SSL_MODE in .env is 'on'",
        ]

    def test_unknown_keys(self) -> None:
        Path("x.json").write_text(
            '{"postgres": {"password": "x", "pasword": "hunter2"}, "pol": {}, "DB_HOSTS": "a", "__core__": 1}'
        )
        told = problems_of(StorageConfig.from_file, "x.json")
        assert told == (
            "postgres.pasword is not a setting; did you mean postgres.password?",
            "pol is not a setting; did you mean pool?",
            "DB_HOSTS is not a setting; did you mean DB_HOST?",
            "__core__ is not a setting",
        )

    @pytest.mark.parametrize(
        ("name", "content", "expected"),
        [
            ("missing.toml", None, "missing.toml cannot be read: No such file or directory"),
            ("x.ini", b"", "x.ini has the ending '.ini'; it may be .toml, .json, .yaml or .yml"),
            (
                "x.toml",
                b'[postgres]\npassword = "hunter2',
                "x.toml cannot be read: it is not TOML (end of document",
            ),
            (
                "x.json",
                b'{"postgres": {"password": "hunter2"',
                "x.json cannot be read: it is not JSON (line 1, column 36",
            ),
            (
                "x.yaml",
                b"postgres:\n  password: 'hunter2",
                "x.yaml cannot be read: it is not YAML (line 2, column 21",
            ),
            (
                "x.yaml",
                b"postgres: \x01hunter2",
                "x.yaml cannot be read: it is not YAML (a character that YAML forbids",
            ),
            (
                "x.yaml",
                b"postgres: !!python/name:os.system hunter2",
                "x.yaml cannot be read: it is not YAML (line 1",
            ),
            ("x.toml", b"\xff\xfehunter2", "x.toml cannot be read: it is not UTF-8"),
            ("x.json", b"[1]", "x.json cannot be read: it must hold sections such as postgres and pool"),
            ("x.json", b'{"postgres": "hunter2"}', "postgres must be a section with settings of its own"),
            (
                "x.json",
                b"[" * 100_000,
                "x.json cannot be read: it is not JSON (a number too long, or nested too deeply)",
            ),
            ("x.toml", b"", "no database is configured; set DATABASE_URL or DB_PASSWORD"),
            ("x.yaml", b"postgres:\n", "no database is configured; set DATABASE_URL or DB_PASSWORD"),
        ],
    )
    def test_files_that_cannot_be_read(self, name: str, content: bytes | None, expected: str) -> None:
        if content is not None:
            Path(name).write_bytes(content)
        (problem,) = problems_of(StorageConfig.from_file, name)
        assert problem.startswith(expected)
        assert "hunter2" not in problem

    def test_a_byte_order_mark_is_no_harm(self) -> None:
        Path("x.toml").write_bytes(b'\xef\xbb\xbf[postgres]\nhost = "h"\n')
        assert StorageConfig.from_file(Path("x.toml")).postgres.host == "h"

    def test_without_pyyaml(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "yaml", None)
        Path("x.yaml").write_text("postgres: {host: h}\n")
        assert problems_of(StorageConfig.from_file, "x.yaml") == (
            "x.yaml cannot be read: YAML needs PyYAML; install observatory-storage[yaml], or use TOML or JSON",
        )

    def test_in_code(self) -> None:
        assert problems_of(PoolConfig, max_connections=1, min_connections=4) == (
            "pool.min_connections is 4; it may hold at most pool.max_connections, which is 1",
        )
        assert problems_of(PostgresConfig, pasword="hunter2") == (
            "postgres.pasword is not a setting; did you mean postgres.password?",
        )
        assert problems_of(StorageConfig, pool="x") == ("pool is of type str; it may be a PoolConfig",)
        config = StorageConfig()
        config.validate()
        object.__setattr__(config.pool, "max_connections", 0)
        object.__setattr__(config.postgres, "port", 0)
        object.__setattr__(config, "project", "")
        assert [line.split(";")[0] for line in problems_of(config.validate)] == [
            "postgres.port is 0",
            "pool.max_connections is 0",
            "project is ''",
        ]

    def test_is_immutable(self) -> None:
        config = StorageConfig()
        for part, name in [(config, "project"), (config.pool, "max_connections"), (config.postgres, "host")]:
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(part, name, "x")


SECRET = "hunter2"


class TestSecrets:
    @pytest.mark.parametrize(
        "url",
        [
            f"postgresql://u:{SECRET}@h:port/d",
            f"postgresql://u:{SECRET}@h/d?nonsense=1",
            f"postgresql://u:{SECRET}@h/d?sslmode=nonsense",
            f"postgresql://u:{SECRET}%zz@h/d",
            f"postgresql://u:{SECRET}%00@h/d",
            f"postgresql://u:a@{SECRET}@h/d",
            f"postgresql://u:12/{SECRET}@h/d",
            f"postgresql://u:a/{SECRET}@h/d",
            f"postgresql://u:12?{SECRET}@h/d",
            f"postgresql://h?password={SECRET}@x",
            f"postgresql://h/d?password=a@{SECRET}",
            f"postgresql://u:{SECRET}",
            f"postgresql://u:{SECRET} x@h/d",
            f"postgresql://u:{SECRET}@[::1/d",
            f"postgresql://u:{SECRET}\udcff@h/d",
            f"postgresql://u:{SECRET}@h/d?connect_timeout",
            f"mysql://u:{SECRET}@h/d",
            f"{SECRET}",
            f"//{SECRET}@h",
            f"host=h password={SECRET}",
        ],
    )
    def test_a_malformed_url_tells_no_password(self, url: str) -> None:
        with pytest.raises(ConfigurationError) as caught:
            StorageConfig.from_url(url)
        self.assert_silent(caught.value)
        assert len(caught.value.problems) == 1

    @pytest.mark.parametrize(
        "url",
        [
            f"redis://:{SECRET}@",
            f"redis://:{SECRET}",
            f"redis://:a/{SECRET}@h",
            f"http://:{SECRET}@h",
            SECRET,
            "",
            "unix://",
        ],
    )
    def test_a_malformed_redis_url_tells_no_password(self, url: str) -> None:
        with pytest.raises(ConfigurationError) as caught:
            StorageConfig.from_url("postgresql://h/d", redis_url=url)
        self.assert_silent(caught.value)
        assert caught.value.problems[0].startswith("redis_url holds a value that is not shown")

    @pytest.mark.parametrize("password", [f"{SECRET}\x00", f"{SECRET}\udcff"])
    def test_a_password_that_cannot_be_sent(self, password: str) -> None:
        with pytest.raises(ConfigurationError) as caught:
            StorageConfig.from_url("postgresql://h/d", password=password)
        self.assert_silent(caught.value)

    def test_a_configuration_shows_none(self, caplog: pytest.LogCaptureFixture) -> None:
        config = StorageConfig.from_url(
            f"postgresql://u:{SECRET}@h/d?sslpassword={SECRET}", redis_url=f"redis://:{SECRET}@r"
        )
        copy = pickle.loads(pickle.dumps(config))
        assert copy == config
        for shown in (
            repr(config),
            str(config),
            f"{config.postgres}",
            repr(copy),
            str(dataclasses.asdict(config)["redis"]),
        ):
            assert SECRET not in shown
        assert SECRET not in caplog.text
        assert config.postgres.conninfo() == make_conninfo(config.postgres.conninfo())
        assert SECRET in config.postgres.conninfo()

    def assert_silent(self, error: ConfigurationError) -> None:
        assert error.__cause__ is None
        assert error.__context__ is None
        told = [str(error), repr(error), repr(error.problems), repr(pickle.loads(pickle.dumps(error)))]
        told.append("".join(traceback.format_exception_only(error)))
        assert not any(SECRET in text for text in told)
