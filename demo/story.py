"""The story: Alice asks, Rhea reviews, a second reviewer starts and issues. Every step through a door."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from demo.deployment import DemoError, Deployment, from_json
from demo.doors import Browser, Machine, links_from_mailbox
from demo.progress import Screen

_POLL_S: Final = 0.5
_READING: Final = ("requests:read", "targets:read", "evidence:read", "certificates:read")
_REASONS: Final = {"PASS": "all_gates_passed", "FAIL": "evidence_failed"}  # nosec B105
STAGES: Final = {
    "locate": "searching",
    "unlearn": "unlearning",
    "verify": "attacking",
    "sweep": "testing earlier deletions again",
    "promote": "promoting",
    "retire": "retiring old weights",
    "dispose": "destroying the payload",
    "certify": "signing",
    "notify": "writing letters",
}


@dataclass(frozen=True, slots=True)
class Told:
    """What came of the story: REST documents, and the files that Alice could download."""

    request: dict[str, Any]
    target: dict[str, Any]
    jobs: list[dict[str, Any]]
    versions: list[dict[str, Any]]
    certificate_id: str
    certificate: bytes
    log_proof: bytes
    evidence: bytes
    issuer: bytes


@dataclass(slots=True)
class Story:
    """The people of one run, each with their own way in."""

    deployment: Deployment
    screen: Screen
    alice: Browser
    rhea: Browser
    second: Browser
    machine: Machine

    def tell(self, *, name: str, email: str) -> Told:
        """Play the whole story and return what it left.

        Raises:
            DemoError: a door answered otherwise than the story needs.
        """
        status_page = self._alice_asks(name, email)
        case = self._only("/v1/requests")["id"]
        self._rhea_reviews(case)
        self._second_starts(case)
        target = self._only(f"/v1/targets?request={case}")["id"]
        verdict = self.machine.get(f"/v1/targets/{target}")["verdict"]
        self._rhea_decides(case, verdict)
        certificate = self._second_issues(case, target)
        return self._alice_reads(status_page, case, target, certificate)

    # --- who does what ------------------------------------------------------------------------------------------

    def _alice_asks(self, name: str, email: str) -> str:
        self.screen.say("Alice asks through the portal and confirms her mailbox by the mailed link.")
        self.alice.open("/")
        self.alice.open("/ask")
        self.alice.send("Send the request", email=email, name=name, statement="Please forget everything about me.")
        confirm, status = links_from_mailbox(self.deployment.mailbox, email)
        self.alice.open(confirm)
        self.alice.send("Yes, I asked, and this mailbox is mine")
        self.alice.send("I have it: delete your copy")
        return status

    def _rhea_reviews(self, case: str) -> None:
        self.screen.say("Rhea sets the legal ground; the training sources are searched for the proven mailbox.")
        self._decide(self.rhea, case, "search", "Set the ground and search", ground="consent_withdrawn")
        self._wait(case, lambda: self._has_done(case, "locate"))
        found = self._only(f"/v1/targets?request={case}")
        self.screen.say(f"Found: {found['record_count']} records behind the model “{found['model']}”. Rhea accepts.")
        self._decide(self.rhea, case, "accept-targets", "Accept the targets")

    def _second_starts(self, case: str) -> None:
        self.screen.say("A second reviewer starts the work: unlearning, then the attacks.")
        self._decide(self.second, case, "start", "Start the work")
        self._wait(case, lambda: self._status(case) == "evidence_review")

    def _rhea_decides(self, case: str, verdict: str) -> None:
        passed = verdict == "PASS"
        choice = "release" if passed else "decline"
        reason = _REASONS.get(verdict, "evidence_inconclusive")
        does = "releases the new version" if passed else "releases nothing"
        self.screen.say(f"The verdict is {verdict}. Rhea reads the evidence and {does}.")
        self.rhea.open(f"/console/cases/{case}/decide")
        self.rhea.send("Record the decision", choice=choice, reason=reason)

    def _second_issues(self, case: str, target: str) -> str:
        def drafted() -> list[dict[str, Any]]:
            return list(self.machine.get(f"/v1/targets/{target}")["certificates"])

        self._wait(case, lambda: bool(drafted()))
        certificate = drafted()[0]
        self.screen.say(f"The second reviewer signs and issues: {certificate['title']}, {certificate['verdict']}.")
        self.second.open(f"/console/certificates/{certificate['id']}")
        self.second.send("Sign and issue")
        self._wait(case, lambda: self._status(case) == "completed")
        return str(certificate["id"])

    def _alice_reads(self, status_page: str, case: str, target: str, certificate: str) -> Told:
        self.screen.say("Alice downloads what proves it from her status page.")
        self.alice.open(status_page)
        files = f"{status_page}/documents/{certificate}"
        model = self._only("/v1/models")["id"]
        return Told(
            request=self.machine.get(f"/v1/requests/{case}"),
            target=self.machine.get(f"/v1/targets/{target}"),
            jobs=self.machine.get(f"/v1/jobs?request={case}")["items"],
            versions=self.machine.get(f"/v1/models/{model}/versions")["items"],
            certificate_id=certificate,
            certificate=self.alice.download(f"{files}.dsse.json"),
            log_proof=self.alice.download(f"{files}.log.json"),
            evidence=self.alice.download(f"{files}.evidence.json"),
            issuer=self.alice.download("/.well-known/erasure-issuer.json"),
        )

    # --- how ----------------------------------------------------------------------------------------------------

    def _decide(self, who: Browser, case: str, action: str, button: str, **fields: str) -> None:
        who.open(f"/console/cases/{case}/do/{action}")
        who.send(button, **fields)

    def _only(self, path: str) -> dict[str, Any]:
        items = self.machine.get(path)["items"]
        if len(items) != 1:
            raise DemoError(f"{path} lists {len(items)} entries; the demonstration expects one")
        return dict(items[0])

    def _status(self, case: str) -> str:
        return str(self.machine.get(f"/v1/requests/{case}")["status"])

    def _has_done(self, case: str, kind: str) -> bool:
        jobs = self.machine.get(f"/v1/jobs?request={case}")["items"]
        return any(job["kind"] == kind and job["state"] == "done" for job in jobs)

    def _wait(self, case: str, until: Callable[[], bool]) -> None:
        """Poll as a machine may, and draw the bar of the job that runs."""
        while not until():
            self.deployment.check()
            for job in self.machine.get(f"/v1/jobs?request={case}")["items"]:
                if job["state"] == "failed":
                    raise DemoError(f"the {job['kind']} job failed: {job['last_error']}; see the runner's log")
                if job["state"] == "leased":
                    how = job["progress"]
                    title = f"{STAGES[job['kind']]}: {how['phase']}" if how["phase"] else STAGES[job["kind"]]
                    self.screen.bar(title, how["done"], how["total"])
            time.sleep(_POLL_S)


def cast_story(deployment: Deployment, screen: Screen) -> Story:
    """Make the staff's accounts and the machine's key, and sign everybody in."""
    rhea, second = Browser(deployment.url), Browser(deployment.url)
    for browser, handle, role in ((rhea, "rhea", "privacy"), (second, "reviewer-2", "ml")):
        made = from_json(deployment.manage("create_staff", handle, "--role", role, "--json"))
        browser.sign_in(handle, made["password"], made["totp_secret"])
        remember_account(deployment, made)
    scopes = [word for scope in _READING for word in ("--scope", scope)]
    key = from_json(deployment.manage("create_api_key", "demo", *scopes, "--staff", "rhea", "--json"))["key"]
    return Story(deployment, screen, Browser(deployment.url), rhea, second, Machine(deployment.url, key))


def remember_account(deployment: Deployment, made: dict[str, Any]) -> None:
    """Note how to sign in later, readable by the owner of this directory alone."""
    path = deployment.out / "accounts.txt"
    with path.open("a", encoding="utf-8") as notes:
        path.chmod(0o600)
        notes.write(f"{made['handle']}  password {made['password']}  authenticator secret {made['totp_secret']}\n")
