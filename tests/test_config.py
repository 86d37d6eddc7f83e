"""The configuration: where values come from, what reaches the server, and how wrong ones are told."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict
from pydantic import SecretStr

from observatory_storage.config import (
    PoolConfig,
    PostgresConfig,
    RedisConfig,
    RetryConfig,
    StorageConfig,
)
from observatory_storage.settings import SETTINGS
from tests.configuring import bare, problems_of

ROOT = Path(__file__).parent.parent
__all__ = ["bare"]

PASSWORDS = [
    "true",
    "True",
    "1e5",
    "007",
    '"quoted"',
    "'q'",
    "[1,2]",
    '{"a": 1}',
    "@format x",
    "@format {this.DB_HOST}",
    "@int 3",
    "@none",
    "@del",
    "@merge a=1",
    "@jinja {{ 1 + 1 }}",
    "@read_file /etc/passwd",
    " leading space",
    "trailing space ",
    "#hash",
    "a #b",
    "$VAR",
    "${HOME}",
    "{this}",
    "dynaconf_merge",
    r"a\nb",
    "a\nb",
    "pässwörd-密碼-🔑",
    "a=b;c",
    "%40",
    "back\\slash'quote\"",
    "null",
    "~",
    "no",
    "12:30:45",
    "2026-01-01",
]


def password_of(config: StorageConfig) -> str:
    password = config.postgres.password.get_secret_value()
    assert conninfo_to_dict(config.postgres.conninfo()).get("password", "") == password
    return password


def in_dotenv(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


class TestVerbatim:
    @pytest.mark.parametrize("password", PASSWORDS)
    def test_from_the_environment(self, password: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DB_PASSWORD", password)
        assert password_of(StorageConfig.from_env()) == password

    @pytest.mark.parametrize("password", PASSWORDS)
    def test_from_dotenv(self, password: str) -> None:
        Path(".env").write_text(f"DB_PASSWORD={in_dotenv(password)}\n", encoding="utf-8")
        assert password_of(StorageConfig.from_env()) == password

    @pytest.mark.parametrize("password", ["true", "1e5", "[1,2]", "@format x", "@int 3", "$VAR", "{this}", "a\\nb"])
    def test_from_dotenv_without_quotes(self, password: str) -> None:
        Path(".env").write_text(f"DB_PASSWORD={password}\n")
        assert password_of(StorageConfig.from_env()) == password

    @pytest.mark.parametrize("password", PASSWORDS)
    @pytest.mark.parametrize("name", ["settings.toml", "x.toml", "x.json", "x.yaml", "x.yml"])
    def test_from_a_file(self, password: str, name: str) -> None:
        # A JSON string is a TOML basic string and a YAML double-quoted scalar, too.
        quoted = json.dumps(password, ensure_ascii=False)
        text = {
            ".toml": f"[postgres]\npassword = {quoted}\n",
            ".json": f'{{"postgres": {{"password": {quoted}}}}}',
        }.get(Path(name).suffix, f"postgres:\n  password: {quoted}\n")
        Path(name).write_text(text, encoding="utf-8")
        config = StorageConfig.from_env() if name == "settings.toml" else StorageConfig.from_file(name)
        assert password_of(config) == password

    @pytest.mark.parametrize("password", ["true", "1e5", "007", "no", "12:30:45", "2026-01-01", "0x1F"])
    def test_from_yaml_without_quotes(self, password: str) -> None:
        Path("x.yaml").write_text(f"postgres: {{host: db, port: 5433, password: {password}}}\n")
        config = StorageConfig.from_file("x.yaml")
        assert password_of(config) == password
        assert config.postgres.port == 5433

    @pytest.mark.parametrize("name", ["DB_USER", "DB_NAME", "DB_APP_NAME", "DB_HOST", "OBSERVATORY_PROJECT"])
    def test_other_text(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DB_PASSWORD", "x")
        monkeypatch.setenv(name, "@format 1e5")
        config = StorageConfig.from_env()
        values = {**dataclasses.asdict(config.postgres), "project": config.project}
        assert "@format 1e5" in values.values()

    @settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1))
    def test_any_text(self, password: str) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DB_PASSWORD", password)
            assert password_of(StorageConfig.from_env()) == password
        quoted = "".join(f"%{byte:02x}" for byte in password.encode())
        assert password_of(StorageConfig.from_url(f"postgresql://u:{quoted}@h/d")) == password


class TestSources:
    def test_a_password_alone_suffices(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DB_PASSWORD", "secret")
        config = StorageConfig.from_env()
        assert config == StorageConfig(postgres=PostgresConfig(password=SecretStr("secret")))
        assert conninfo_to_dict(config.postgres.conninfo()) == {
            "host": "localhost",
            "port": "5432",
            "dbname": "llm_observatory",
            "user": "postgres",
            "password": "secret",
            "sslmode": "prefer",
            "application_name": "llm-observatory",
        }
        assert config.redis is None
        assert (config.pool.max_connections, config.pool.min_connections) == (50, 5)
        assert (config.pool.connect_timeout_seconds, config.pool.idle_timeout_seconds) == (10, 300)
        assert config.pool.max_lifetime_seconds == 1800
        assert (config.retry.max_attempts, config.retry.initial_delay_ms) == (3, 100)
        assert (config.retry.max_delay_ms, config.retry.backoff_multiplier) == (5000, 2.0)
        assert config.project == "default"

    def test_environment_before_dotenv_before_settings(self, monkeypatch: pytest.MonkeyPatch) -> None:
        Path("settings.toml").write_text(
            'project = "toml"\n[pool]\nmax_connections = 7\n'
            '[postgres]\nhost = "toml"\ndatabase = "toml"\nusername = "toml"\n'
        )
        Path(".env").write_text("DB_NAME=dotenv\nDB_USER=dotenv\nexport DB_POOL_MAX_SIZE=8\n")
        monkeypatch.setenv("DB_USER", "environment")
        config = StorageConfig.from_env()
        assert str(config.postgres) == "environment@toml:5432/dotenv"
        assert config.pool.max_connections == 8
        assert config.project == "toml"

    def test_reading_leaves_the_environment_alone(self) -> None:
        Path(".env").write_text("DB_PASSWORD=x\nOTHER=y\n")
        before = dict(os.environ)
        StorageConfig.from_env()
        assert dict(os.environ) == before

    def test_only_the_working_directory_is_searched(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for folder in (Path("config"), Path("below")):
            folder.mkdir()
        for name in (".env", "config/.env"):
            Path(name).write_text("DB_PASSWORD=x\nDB_HOST=elsewhere\n")
        Path("settings.toml").write_text('[postgres]\nhost = "elsewhere"\n')
        monkeypatch.chdir("below")
        assert "no database is configured" in problems_of(StorageConfig.from_env)[0]

    def test_foreign_settings_do_not_matter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in {
            "ENVIRONMENTS_FOR_DYNACONF": "true",
            "AUTO_CAST_FOR_DYNACONF": "true",
            "SETTINGS_FILE_FOR_DYNACONF": "other.toml",
            "ENVVAR_PREFIX_FOR_DYNACONF": "DB",
            "MERGE_ENABLED_FOR_DYNACONF": "true",
            "DYNACONF_DB_HOST": "wrong",
            "ENV_FOR_DYNACONF": "production",
            "DB_UNRELATED": "[",
            "POSTGRES": "x",
            "POOL": "5",
            "REDIS": "no",
            "PROJECT": "no",
            "PGHOST": "wrong",
            "PGSSLMODE": "wrong",
            "db_password": "wrong",
        }.items():
            monkeypatch.setenv(name, value)
        Path("other.toml").write_text('DB_HOST = "wrong"\n')
        Path("dynaconf_hooks.py").write_text("raise SystemExit('executed')\n")
        Path("settings.toml").write_text(
            'DEBUG = true\ninclude = ["other.toml"]\n[default]\nx = 1\n[production]\nDB_HOST = "wrong"\n'
            '[postgres]\nhost = "right"\n'
        )
        Path(".env").write_text("this is = not\n'for us\nPORT=abc\nDB_PASSWORD=@int 3\n")
        config = StorageConfig.from_env()
        assert config == StorageConfig(postgres=PostgresConfig(host="right", password=SecretStr("@int 3")))

    @pytest.mark.parametrize("name", [name for setting in SETTINGS for name in setting.names])
    def test_every_name_is_read(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        value = {
            "DATABASE_URL": "postgresql://other/x",
            "REDIS_URL": "redis://other",
            "DB_SSL_MODE": "require",
            "DB_MIN_CONNECTIONS": "2",
            "DB_POOL_MIN_CONNECTIONS": "2",
            "DB_POOL_MIN_SIZE": "2",
            "DB_RETRY_MAX_DELAY_MS": "700",
            "OBSERVATORY_RETENTION": "traces=30d, usage=730d, usage:research=forever",
            "OBSERVATORY_PARTITIONS": "logs=day",
        }.get(name, "17")
        monkeypatch.setenv("DB_PASSWORD", "x")
        monkeypatch.setenv("REDIS_URL", "redis://somewhere")
        before = StorageConfig.from_env()
        monkeypatch.setenv(name, value)
        assert StorageConfig.from_env() != before

    def test_the_example_names_every_option_with_its_default(self, monkeypatch: pytest.MonkeyPatch) -> None:
        text = (ROOT / ".env.example").read_text()
        assert {setting.names[0] for setting in SETTINGS if setting.names} == set(
            re.findall(r"^(?:# )?([A-Z_]+)=", text, re.MULTILINE)
        )
        Path(".env").write_text(re.sub(r"^# (?!DATABASE_URL|REDIS_URL)([A-Z_]+=)", r"\1", text, flags=re.MULTILINE))
        assert StorageConfig.from_env() == StorageConfig()
        Path("settings.toml").write_bytes((ROOT / "settings.toml").read_bytes())
        assert StorageConfig.from_env() == StorageConfig()

    def test_the_example_settings_are_all_known(self) -> None:
        text = (ROOT / "settings.toml").read_text()
        Path("all.toml").write_text(re.sub(r"^# (?=\[|\w+ = )", "", text, flags=re.MULTILINE))
        config = StorageConfig.from_file("all.toml")
        assert (str(config.postgres), password_of(config)) == (
            "postgres@localhost:5432/llm_observatory",
            "password",
        )
        assert config.postgres.parameters == {"sslrootcert": "/etc/ssl/certs/ca.pem"}
        assert config.redis == RedisConfig(url=SecretStr("redis://localhost:6379/0"))

    def test_importing_the_package_reads_nothing(self) -> None:
        code = (
            "import os, sys\n"
            "before = set(sys.modules)\n"
            "import observatory_storage, observatory_storage.config\n"
            "assert not [m for m in sys.modules if m.startswith('dynaconf')]"
        )
        subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


class TestUrls:
    @pytest.mark.parametrize(
        ("url", "expected"),
        [
            (
                "postgresql://u:p@h:5433/d",
                {"user": "u", "password": "p", "host": "h", "port": "5433", "dbname": "d"},
            ),
            ("postgres://u:p%40%2F%3A%25@h/d", {"password": "p@/:%", "host": "h", "port": "5432"}),
            ("postgresql+psycopg://u:a%20b@h/d", {"password": "a b"}),
            ("postgresql://u:p:w@h/d", {"password": "p:w"}),
            ("postgresql://u:p@[2001:db8::1]:5433/d", {"host": "2001:db8::1", "port": "5433"}),
            (
                "postgresql://u@h1:5433,h2:5434/d?target_session_attrs=any",
                {"host": "h1,h2", "port": "5433,5434"},
            ),
            ("postgresql://u@h1,h2/d", {"host": "h1,h2", "port": "5432"}),
            (
                "postgresql:///d?host=/run/postgres&port=5433",
                {"host": "/run/postgres", "port": "5433", "dbname": "d"},
            ),
            ("postgresql://%2Frun%2Fpostgres/d", {"host": "/run/postgres"}),
            ("postgresql://postgres:@/postgres?host=/a/b", {"host": "/a/b", "user": "postgres"}),
            (
                "postgresql://h/d?sslmode=require&application_name=a%20b",
                {"sslmode": "require", "application_name": "a b"},
            ),
            (
                "postgresql://h/d?connect_timeout=3&options=-c%20a%3Db",
                {"connect_timeout": "3", "options": "-c a=b"},
            ),
            ("postgresql://me%40tenant:p@h/d", {"user": "me@tenant"}),
        ],
    )
    def test_are_read_as_libpq_reads_them(self, url: str, expected: dict[str, str]) -> None:
        config = StorageConfig.from_url(url)
        config.validate()
        found = conninfo_to_dict(config.postgres.conninfo())
        assert {name: found.get(name) for name in expected} == expected

    def test_what_a_url_lacks_is_left_to_libpq(self) -> None:
        config = StorageConfig.from_url("postgresql:///d")
        assert conninfo_to_dict(config.postgres.conninfo()).keys() == {
            "dbname",
            "port",
            "sslmode",
            "application_name",
        }
        service = StorageConfig.from_url("postgresql:///?service=main")
        assert conninfo_to_dict(service.postgres.conninfo()).keys() == {"service", "application_name"}

    def test_single_settings_fill_in_what_the_url_lacks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DATABASE_URL", "postgresql://u@h/d")
        monkeypatch.setenv("DB_PASSWORD", "p")
        monkeypatch.setenv("DB_HOST", "other")
        monkeypatch.setenv("DB_SSL_MODE", "require")
        config = StorageConfig.from_env()
        assert (str(config.postgres), password_of(config)) == ("u@h:5432/d", "p")
        assert config.postgres.ssl_mode == "require"

    def test_a_stronger_source_wins_over_a_url(self, monkeypatch: pytest.MonkeyPatch) -> None:
        Path("settings.toml").write_text('[postgres]\nurl = "postgresql://dev:devpw@dev/dev?connect_timeout=3"\n')
        monkeypatch.setenv("DB_NAME", "mine")
        assert str(StorageConfig.from_env().postgres) == "dev@dev:5432/mine"
        # Nothing of one URL is sent to the server of another.
        monkeypatch.setenv("DATABASE_URL", "postgresql://production/")
        config = StorageConfig.from_env()
        assert (str(config.postgres), password_of(config)) == ("production:5432/mine", "")
        assert config.postgres.parameters == {}

    def test_overrides(self) -> None:
        config = StorageConfig.from_url(
            "postgresql://u:p@h/d",
            max_connections=4,
            password="other",
            redis_url="redis://r",
            redis_timeout_seconds=0.5,
            project="p",
            idle_timeout_seconds=None,
            retry=RetryConfig(max_attempts=1),
        )
        assert config.pool == PoolConfig(max_connections=4, min_connections=4)
        assert config.redis == RedisConfig(url=SecretStr("redis://r"), timeout_seconds=0.5)
        assert (password_of(config), config.project, config.retry.max_attempts) == ("other", "p", 1)
        assert problems_of(StorageConfig.from_url, "postgresql://h/d", max_conections=3) == (
            "max_conections is not a setting; did you mean max_connections?",
        )

    def test_connects(self, server_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        config = StorageConfig.from_url(server_url, application_name="it's a\\test")
        with psycopg.connect(config.postgres.conninfo()) as connection:
            row = connection.execute("SELECT current_setting('application_name'), current_user").fetchone()
        assert row == ("it's a\\test", config.postgres.username)
        monkeypatch.setenv("DATABASE_URL", server_url)
        with psycopg.connect(StorageConfig.from_env().postgres.conninfo()) as connection:
            assert connection.info.status.name == "OK"
