"""Mallory has a mailbox of her own, a key of her own, and whatever she could find out about Alice. At every door she
can neither erase Alice nor find out whether anything is known about her."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.core import mail
from django.core.cache import cache
from django.test import Client

from deletion_service.certificates.issuing import issue_certificate
from deletion_service.certificates.models import Certificate, Evidence
from deletion_service.requests.codes import Ground
from deletion_service.requests.identity import identity_token, status_token
from deletion_service.requests.intake import Identifier
from deletion_service.requests.models import ErasureRequest
from deletion_service.targets.locate import close_nothing_found, start_search
from deletion_service.targets.models import ErasureTarget, Job
from tests.cast import ALICE, ALICE_NAME, BOB, MALLORY, rhea, second_reviewer
from tests.doors import ALL_READING, Machine
from tests.flow.conftest import case, release, run_all_jobs, simulator  # noqa: F401 - fixtures
from tests.portal.test_ask import ask
from tests.test_hostile_addresses import routes
from tests.world import make_model
from workers.reconcile import reconcile

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _no_limits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Mallory has more patience, and more addresses, than one visitor may show."""
    cache.clear()
    plenty = dict.fromkeys(("ask", "portal", "status", "anonymous", "principal"), "9999/min")
    for throttle in ("portal.limits._AddressThrottle", "api.throttles.AnonymousThrottle"):
        monkeypatch.setattr(f"deletion_service.{throttle}.THROTTLE_RATES", plenty)
    yield
    cache.clear()


@pytest.fixture
def alice(case: Callable[..., ErasureRequest]) -> ErasureRequest:  # noqa: F811 - the fixture
    """Alice's case has ended well, and left a row of every kind."""
    request = release(case())
    issue_certificate(Certificate.objects.get(), member=second_reviewer())
    run_all_jobs()
    reconcile()
    request.refresh_from_db()
    return request


def source() -> bytes:
    return (Path(settings.SOURCE_ROOT) / "customers" / "records-0.jsonl").read_bytes()


# --- a mailbox that looks like hers -------------------------------------------------------------------------------


# Each of these folds to Alice's address when spellings are compared, and is another mailbox.
LOOKALIKES = {
    "a Kelvin sign": "alice.\u212aorvel@mail.example",
    "letters of full width": "\uff41lice.korvel@mail.example",
    "a ligature": "alice.korve\u2113@mail.example",
    "a bold letter": "\U0001d41alice.korvel@mail.example",
    "an invisible letter": "alice\u200b.korvel@mail.example",
    "a line after it": "alice.korvel@mail.example\nmallory@evil.example",
    "two addresses": "alice.korvel@mail.example,mallory@evil.example",
    "a name in front": "Alice <alice.korvel@mail.example>",
    "an invisible domain": "alice.korvel@\u00ad.example",
    "letters that run both ways": "alice.korvel@\u05d0a.example",
    "a label no mail can carry": "alice.korvel@" + "\u00e9" * 63 + ".example",
    "a line in code": "=?utf-8?q?x=0d=0ay?=@mail.example",
    "another address in code": "=?utf-8?q?alice.korvel?=@mail.example",
    "a host of this network": "alice.korvel@[10.0.0.5]",
    "this host": "alice.korvel@localhost",
}
# A domain with a letter that folds to a plain one is another domain: mail goes to whoever holds it.
OTHER_DOMAINS = ("alice.korvel@mai\u2097.example", "alice.korvel@xn--mai-720a.example")


@pytest.mark.parametrize("address", LOOKALIKES.values(), ids=list(LOOKALIKES))
def test_a_mailbox_that_only_folds_to_alices_address_proves_nothing(address: str) -> None:
    make_model()
    answer = ask(Client(), email=address)
    assert answer.status_code == 422
    body = {"identifiers": [{"type": "email", "value": address}]}
    assert Machine("requests:write").post("/v1/requests", body).status_code == 422
    reconcile()
    assert (ErasureRequest.objects.count(), mail.outbox) == (0, [])


@pytest.mark.parametrize("address", OTHER_DOMAINS)
def test_a_mailbox_in_a_domain_that_looks_like_hers_proves_nothing_about_alice(client: Client, address: str) -> None:
    make_model()
    assert Identifier("email", address).normalised != ALICE.normalised
    assert {Identifier("email", other).normalised for other in OTHER_DOMAINS} == {"alice.korvel@xn--mai-720a.example"}
    request = confirmed(client, mailbox=address)
    assert not ErasureTarget.objects.filter(request=request).exists()
    assert [message.to for message in mail.outbox if message.to != [address]] == []


def test_whatever_mailbox_is_accepted_gets_the_letter_itself(client: Client) -> None:
    """What is proven is the mailbox that the link went to, in the very spelling that was typed."""
    for address in ("ALICE.korvel@MAIL.example", "alice.korvel+x@mail.example"):
        mail.outbox.clear()
        assert ask(client, email=address).status_code == 302
        reconcile()
        assert [message.to for message in mail.outbox] == [[address]]


# --- her own mailbox, Alice's particulars -------------------------------------------------------------------------


CLAIMS = {
    "her name": {"name": ALICE_NAME.value},
    "her address as an account": {"account": ALICE.value},
    "her name and her words": {"name": ALICE_NAME.value, "statement": f"I am {ALICE.value}; forget me"},
    "another form of her name": {"name": "  ALICE   korvel "},
}


def confirmed(client: Client, *, mailbox: str = MALLORY.value, **claims: str) -> ErasureRequest:
    """Mallory asks, proves that her mailbox is hers, and the search runs to its end."""
    ask(client, email=mailbox, **claims)
    request = ErasureRequest.objects.latest("received_at")
    client.post(f"/confirm/{request.receipt}/{identity_token(request.identity_check)}")
    request.refresh_from_db()
    start_search(request, ground=Ground.CONSENT_WITHDRAWN, reviewer=rhea(), actor="staff:rhea")
    run_all_jobs()
    return request


@pytest.mark.parametrize("claims", CLAIMS.values(), ids=list(CLAIMS))
def test_her_own_proof_never_counts_for_alices_records(client: Client, claims: dict[str, str]) -> None:
    make_model()
    before = source()
    request = confirmed(client, **claims)
    assert not request.targets.filter(record_count__gt=0).exists()
    close_nothing_found(request, actor="staff:rhea")
    reconcile()
    run_all_jobs()
    assert source() == before
    assert not Job.objects.exclude(kind="locate").exists()

    ask(client, email=ALICE.value)
    own = ErasureRequest.objects.latest("received_at")
    client.post(f"/confirm/{own.receipt}/{identity_token(own.identity_check)}")
    own.refresh_from_db()
    start_search(own, ground=Ground.CONSENT_WITHDRAWN, reviewer=rhea(), actor="staff:rhea")
    run_all_jobs()
    assert own.targets.get().record_count == 2


@pytest.mark.parametrize("claims", CLAIMS.values(), ids=list(CLAIMS))
def test_pages_codes_and_letters_are_the_same_as_for_somebody_nobody_knows(
    client: Client, claims: dict[str, str]
) -> None:
    make_model()
    unknown = dict.fromkeys(claims, "Nobody Inparticular")
    assert seen(client, **claims) == seen(client, **unknown)


def seen(client: Client, **claims: str) -> list[tuple[int, str]]:
    """Every answer and every letter that Mallory gets, without what differs between any two requests."""
    mail.outbox.clear()
    request = confirmed(client, **claims)
    link = f"/status/{request.receipt}/{status_token(request)}"
    found = []
    for step in (lambda: None, lambda: close_nothing_found(request, actor="staff:rhea"), lambda: None):
        step()
        reconcile()
        for path in (link, f"{link}/withdraw", f"{link}/documents/evidence.json"):
            answer = client.get(path)
            found.append((answer.status_code, answer.content.decode()))
    found += [(0, f"{message.subject}\n{message.body}") for message in mail.outbox]
    own = (request.receipt, request.pk, status_token(request))
    return [(code, without(text, own)) for code, text in found]


def without(text: str, own: tuple[str, ...]) -> str:
    for particular in own:
        text = text.replace(particular, "·")
    text = re.sub(r"[0-9a-f]{64}|[0-9a-f]{8}( [0-9a-f]{8}){7}", "·", text)
    return re.sub(r'name="csrfmiddlewaretoken" value="[^"]*"|The link works once, until .*', "·", text)


# --- links and ids of Alice's case --------------------------------------------------------------------------------


def test_her_own_link_opens_nothing_of_alices_case(client: Client, alice: ErasureRequest) -> None:
    ask(client, email=MALLORY.value)
    own = ErasureRequest.objects.latest("received_at")
    token, certificate = status_token(own), Certificate.objects.get()
    pairs = [
        (f"/status/{alice.receipt}/{token}", f"/status/LT-AAAA-AAAA-AAAA/{token}"),
        (f"/status/{alice.receipt}/{token}/withdraw", f"/status/LT-AAAA-AAAA-AAAA/{token}/withdraw"),
        (f"/receipt/{alice.receipt}/{token}", f"/receipt/LT-AAAA-AAAA-AAAA/{token}"),
        (
            f"/confirm/{alice.receipt}/{identity_token(own.identity_check)}",
            f"/confirm/LT-AAAA-AAAA-AAAA/{identity_token(own.identity_check)}",
        ),
        (
            f"/status/{own.receipt}/{token}/documents/{certificate.pk}.dsse.json",
            f"/status/{own.receipt}/{token}/documents/crt_01kexample0000000000000000.dsse.json",
        ),
    ]
    for known, unknown in pairs:
        for ask_for in (client.get, client.post):
            first, second = ask_for(known), ask_for(unknown)
            assert first.status_code == second.status_code >= 400, known
            assert first.content == second.content, known
            assert sorted(first.headers) == sorted(second.headers)
    alice.refresh_from_db()
    assert alice.outcome == "erased"


REST = [route for route in sorted(routes()) if route.startswith("v1/") and "<str:model_id>" not in route]


@pytest.mark.parametrize("who", ["nobody", "her own key", "a key without scopes"])
def test_an_id_of_alices_case_and_an_invented_one_get_the_same_answer(who: str, alice: ErasureRequest) -> None:
    known = {
        "request_id": alice.pk,
        "target_id": ErasureTarget.objects.get().pk,
        "job_id": Job.objects.earliest("pk").pk,
        "evidence_id": Evidence.objects.get().pk,
        "certificate_id": Certificate.objects.get().pk,
    }
    door = door_of(who)
    for route in REST:
        real = re.sub(r"<str:(\w+)>", lambda found: known[found[1]], route)
        invented = re.sub(r"<str:(\w+)>", lambda found: f"{known[found[1]][:4]}01kexample{'0' * 16}", route)
        first, second = (answers(door, path) for path in (real, invented))
        assert first == second, route
        assert all(status >= 400 for status, _ in first), route
    # Whoever may look sees the difference, so that the sameness above says something.
    member = Machine(*ALL_READING, staff=second_reviewer())
    assert member.get(f"/v1/requests/{alice.pk}").status_code == 200


def door_of(who: str) -> Any:
    if who == "nobody":
        return Client(raise_request_exception=False)
    return Machine(*ALL_READING, "requests:write", "approve") if who == "her own key" else Machine()


def answers(door: Any, path: str) -> list[tuple[int, str]]:
    """Status and body of each method, without the address that was asked for."""
    given = [door.get(f"/{path}"), door.post(f"/{path}")]
    return [(answer.status_code, answer.content.decode().replace(path, "·")) for answer in given]


def test_the_lists_of_her_own_key_are_empty_whatever_she_filters_by(alice: ErasureRequest) -> None:
    mallory = Machine(*ALL_READING, "requests:write")
    for path in (
        "/v1/requests",
        "/v1/targets",
        "/v1/jobs",
        f"/v1/targets?request={alice.pk}",
        f"/v1/jobs?request={alice.pk}",
    ):
        assert mallory.get(path).json() == {"items": [], "next_cursor": None}, path


def test_an_upstream_id_that_another_sender_used_is_free_for_her() -> None:
    """A reference that is taken must not tell that somebody else took it."""
    body = {"identifiers": [{"type": "email", "value": BOB.value}], "upstream_id": "case-of-alice"}
    assert Machine("requests:write").post("/v1/requests", body).status_code == 201
    assert Machine("requests:write").post("/v1/requests", body).status_code == 201
