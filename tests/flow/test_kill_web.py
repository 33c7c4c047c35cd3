"""`kill -9` of the web process, between any two steps and inside every one: nothing twice, nothing lost."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import httpx
import pytest

from demo.deployment import DemoError, from_json
from demo.doors import Browser, links_from_mailbox
from ml.data.people import email_of
from tests.flow.conftest import Played
from tests.flow.stand import Stand, database_of_its_own, deployed, until
from tests.tiny import TinyWorld

pytestmark = pytest.mark.slow
Send = Callable[[str], object]
RELEASE = {"choice": "release", "reason": "all_gates_passed"}


@dataclass(frozen=True, slots=True)
class Machine:
    """A program with a key; whatever it has to say, it says until it is answered, under one Idempotency-Key."""

    stand: Stand
    key: str

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"{self.stand.url}{path}", headers=self._headers(), timeout=60)

    def post(self, path: str, body: object, *, key: str, die: str = "") -> httpx.Response:
        headers = {**self._headers(), "Idempotency-Key": key, "X-Die": die}
        return httpx.post(f"{self.stand.url}{path}", json=body, headers=headers, timeout=60)

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}


def machine(stand: Stand, *scopes: str, staff: str = "") -> Machine:
    words = [word for scope in scopes for word in ("--scope", scope)]
    person = ["--staff", staff] if staff else []
    return Machine(stand, from_json(stand.manage("create_api_key", "test", *words, *person, "--json"))["key"])


def insist(stand: Stand, send: Send) -> None:
    """Send again after each death: before anything, before each commit, with the answer ready; then once more."""
    for commit in range(30):
        with suppress(httpx.TransportError):
            send("start" if commit == 0 else f"commit-{commit}")
            raise AssertionError("the web process should have died")
        if stand.deaths[-1] == "web:answer":
            break
    send("")


def pressing(browser: Browser, button: str, **fields: str) -> Send:
    """Press a button; a page that says that it was done before is an answer too, and no other complaint is."""

    def send(die: str) -> None:
        browser._http.headers["X-Die"] = die
        try:
            browser.send(button, **fields)
        except DemoError as exc:
            if not any(f" answered {status}: " in str(exc) for status in (409, 410)):
                raise

    return send


def calling(who: Machine, path: str, body: object, *, key: str) -> Send:
    """Post under one key, by a client that waits until the claim of a dead process may be taken over."""

    def send(die: str) -> None:
        forget_when_claims_were_made(who.stand)
        answer = who.post(path, body, key=key, die=die)
        assert answer.status_code in (201, 202), answer.text
        assert answer.headers["Idempotency-Replayed"] == "true"

    return send


def forget_when_claims_were_made(stand: Stand) -> None:
    """Let a minute pass for claims that have no answer."""
    with stand.database() as connection:
        connection.execute(
            "UPDATE api_idempotencyrecord SET created_at = '2026-01-01 00:00:00' WHERE status_code IS NULL"
        )


@pytest.fixture(params=["sqlite", "postgres"])
def open_stand(
    request: pytest.FixtureRequest, tiny: TinyWorld, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stand]:
    """A deployment with open doors, on each database."""
    with (
        database_of_its_own(request.param) as url,
        deployed(tmp_path_factory.mktemp(f"web-{request.param}"), tiny, database_url=url) as stand,
    ):
        stand.begin_web()
        yield stand


def signed_in(stand: Stand, handle: str, role: str) -> Browser:
    made = from_json(stand.manage("create_staff", handle, "--role", role, "--json"))
    browser = Browser(stand.url)
    browser.sign_in(handle, made["password"], made["totp_secret"])
    return browser


def start_again(stand: Stand) -> None:
    stand.kill("web")
    stand.begin_web()


def test_a_case_whose_web_process_dies_in_and_after_every_step_ends_as_if_it_had_not(
    open_stand: Stand, tiny: TinyWorld, undisturbed: Played
) -> None:
    stand, alice = open_stand, tiny.world.alice
    stand.begin_runner(tiny)
    rhea, second = signed_in(stand, "rhea", "privacy"), signed_in(stand, "reviewer-2", "ml")
    reading = machine(stand, "requests:read", "targets:read", "certificates:read", staff="rhea")
    asking = Browser(stand.url)

    asking.open("/ask")
    insist(stand, pressing(asking, "Send the request", email=email_of(alice), name=alice.name))
    start_again(stand)
    confirm, status = links_from_mailbox(stand.mailbox, email_of(alice))
    asking.open(confirm)
    insist(stand, pressing(asking, "Yes, I asked, and this mailbox is mine"))
    start_again(stand)
    asking.open(status.replace("/status/", "/receipt/"))
    insist(stand, pressing(asking, "I have it: delete your copy"))
    start_again(stand)

    case = reading.get("/v1/requests").json()["items"][0]["id"]
    for who, action, button, fields in (
        (rhea, "search", "Set the ground and search", {"ground": "consent_withdrawn"}),
        (rhea, "accept-targets", "Accept the targets", {}),
        (second, "start", "Start the work", {}),
    ):
        who.open(f"/console/cases/{case}/do/{action}")
        insist(stand, pressing(who, button, **fields))
        start_again(stand)
        until(lambda: not at_work(reading, case), what="the workers")

    until(lambda: reading.get(f"/v1/requests/{case}").json()["status"] == "evidence_review", what="the verdict")
    decide = machine(stand, "approve", "requests:read", staff="rhea")
    insist(stand, calling(decide, f"/v1/requests/{case}/evidence-decision", RELEASE, key="decision"))
    start_again(stand)
    target = reading.get(f"/v1/targets?request={case}").json()["items"][0]["id"]
    until(lambda: reading.get(f"/v1/targets/{target}").json()["certificates"], what="the draft")
    certificate = reading.get(f"/v1/targets/{target}").json()["certificates"][0]["id"]
    issue = machine(stand, "approve", "certificates:read", staff="reviewer-2")
    insist(stand, calling(issue, f"/v1/certificates/{certificate}/issue", {}, key="issue"))
    start_again(stand)

    stand.people("settled")
    facts = stand.people("facts")
    keys = [path for path in facts["left"] if path.startswith("keystore/")]
    assert facts["left"] == sorted([*undisturbed.facts["left"], *keys])
    # A form that died before it was kept leaves a key under which nothing was kept; those of the case are destroyed.
    destroyed = keys_destroyed(stand)
    assert "dek_" in destroyed
    assert [key for key in keys if key.removeprefix("keystore/") in destroyed] == []
    same = facts.keys() - {"audit", "left"}
    assert {fact: facts[fact] for fact in same} == {fact: undisturbed.facts[fact] for fact in same}
    more = Counter(map(json.dumps, facts["audit"])) - Counter(map(json.dumps, undisturbed.facts["audit"]))
    assert list(more.elements()) == ['["subject", "request.nonce_forgotten", "erasurerequest", ""]']
    assert len(facts["audit"]) == len(undisturbed.facts["audit"]) + 1
    assert Counter(stand.deaths)["web:answer"] == 8


def keys_destroyed(stand: Stand) -> str:
    with stand.database() as connection:
        return str(connection.execute("SELECT key_ids FROM requests_disposalevent").fetchall())


def at_work(reading: Machine, case: str) -> bool:
    jobs = reading.get(f"/v1/jobs?request={case}").json()["items"]
    return any(job["state"] in ("ready", "leased") for job in jobs)


def test_an_instruction_that_is_sent_again_after_each_death_is_taken_once(open_stand: Stand, tiny: TinyWorld) -> None:
    sender = machine(open_stand, "requests:write", "requests:read")
    body = {"identifiers": [{"type": "email", "value": email_of(tiny.world.bob)}], "upstream_id": "case-1"}
    with pytest.raises(httpx.TransportError):
        sender.post("/v1/requests", body, key="k", die="commit-2")
    # Nobody can tell a dead process from a slow one at once: until then the client is asked to wait.
    waiting = sender.post("/v1/requests", body, key="k")
    assert (waiting.status_code, waiting.json()["code"]) == (409, "request_in_flight")
    assert "Retry-After" in waiting.headers
    assert sender.get("/v1/requests").json()["items"] == []
    insist(open_stand, calling(sender, "/v1/requests", body, key="k"))
    assert len(sender.get("/v1/requests").json()["items"]) == 1
