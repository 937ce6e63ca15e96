"""Law: nothing is sent to a metadata service, in the clear, or to where somebody else points."""

import socket
from ipaddress import IPv4Address
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evoselect_pipeline.addresses import is_in_the_clear, is_metadata_service, without_login
from evoselect_pipeline.components.alerts import post
from evoselect_pipeline.config_rows import ServerSource
from evoselect_pipeline.core.records import sample_from_pair
from evoselect_pipeline.errors import ConfigError
from evoselect_pipeline.generation.base import Assignment
from evoselect_pipeline.generation.server import Server
from evoselect_pipeline_tests.integration.fake_llm import Reply, fake_llm

KEY = "sk-very-secret-4711"
SPELLINGS = {
    "dotted": "169.254.169.254",
    "decimal": "2852039166",
    "hexadecimal": "0xA9FEA9FE",
    "octal": "0251.0376.0251.0376",
    "two parts": "169.16689662",
    "wide digits": "１６９.254.169.254",
    "ideographic dots": "169。254。169。254",
    "ending in a dot": "169.254.169.254.",
    "mapped into IPv6": "[::ffff:169.254.169.254]",
    "mapped, in hexadecimal": "[::ffff:a9fe:a9fe]",
    "compatible with IPv6": "[::a9fe:a9fe]",
    "translated": "[64:ff9b::a9fe:a9fe]",
    "link-local IPv6": "[fe80::1]",
    "Amazon's IPv6": "[fd00:ec2::254]",
    "Alibaba's": "100.100.100.200",
    "Google's name": "metadata.google.internal",
    "in capitals": "METADATA.google.internal",
}


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("host", SPELLINGS.values(), ids=SPELLINGS)
def test_g12_a_metadata_service_is_no_generator_in_any_spelling(scheme, host):
    address = f"{scheme}://{host}/v1"
    with pytest.raises(ValueError, match="hands out its machines' credentials"):
        ServerSource(kind="server", base_url=address, model="m", allow_insecure=True)
    with pytest.raises(ValueError, match="EVOSELECT_WEBHOOK"):
        post(address, {"text": ""})


@given(st.integers(0, 2**16 - 1).map(lambda rest: IPv4Address((169 << 24) + (254 << 16) + rest)))
def test_g12_every_link_local_address_is_found_however_it_is_written(address):
    number = int(address)
    dotted = ".".join(f"0{int(part):o}" for part in str(address).split("."))
    for host in (str(address), str(number), hex(number), dotted, f"::ffff:{address}"):
        assert is_metadata_service(host)


@given(st.integers(0, 2**32 - 1).map(IPv4Address))
def test_g12_other_addresses_are_let_through(address):
    known = ("100.100.100.200", "168.63.129.16", "192.0.0.192")
    expected = address.is_link_local or str(address) in known
    assert is_metadata_service(str(address)) == expected
    assert is_metadata_service(str(int(address))) == expected


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "10.0.0.7", "llm.example"])
def test_g12_a_server_of_ones_own_is_an_address_like_any_other(host):
    assert ServerSource(kind="server", base_url=f"https://{host}/v1", model="m")


@pytest.mark.parametrize(
    "address", ["http://localhost.evil.example/", "http://127.1/", "http://[::ffff:127.0.0.1]/"]
)
def test_g12_what_only_looks_like_this_machine_is_in_the_clear(address):
    assert is_in_the_clear(urlsplit(address))


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_g12_a_redirection_is_not_followed_neither_with_a_key_nor_with_an_alert(
    tmp_path, monkeypatch, status
):
    monkeypatch.setenv("A_KEY", KEY)
    targets = [sample_from_pair("1 + 1", "2")]
    with fake_llm(lambda number, body: Reply({})) as elsewhere:
        away = Reply({}, status, {"Location": f"{elsewhere.address}/chat/completions"})
        with fake_llm(lambda number, body: away) as server:
            source = ServerSource(
                kind="server",
                base_url=server.address,
                model="m",
                api_key_variable="A_KEY",
                num_candidates=1,
                retries=0,
            )
            assignment = Assignment(targets, 0, seed=7, log_file=tmp_path / "answers.jsonl")
            with pytest.raises(ConfigError, match=rf"Error code: {status}"):
                Server(source).generate(assignment)
            with pytest.raises(OSError, match=str(status)):
                post(server.address, {"text": "failed"})
        assert len(server.asked) == 2
        assert elsewhere.asked == []


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://me:hush@host:1/x", "https://***@host:1/x"),
        ("postgresql+psycopg2://me:hu/s@h@host/x", "postgresql+psycopg2://***@host/x"),
        ("me:hush@host", "***@host"),
        ("https://host/x", "https://host/x"),
    ],
)
def test_a_login_is_not_shown(address, shown):
    assert without_login(address) == shown


def test_a_name_is_not_looked_up(monkeypatch):
    """What it leads to may be another thing a moment later; see SECURITY.md."""
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: pytest.fail("looked up"))
    assert not is_metadata_service("169.254.169.254.nip.example")
