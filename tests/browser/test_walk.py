"""Alice asks, Rhea reviews, a second reviewer starts and issues, Alice reads her certificate: in a real browser."""

from __future__ import annotations

import time
from typing import Any

import pytest
from selenium.webdriver.support.ui import WebDriverWait

from deletion_service.access.models import StaffMember
from deletion_service.access.staff import NewStaffMember, create_staff_member
from deletion_service.requests.models import ErasureRequest
from tests.browser.conftest import Visitor
from tests.cast import ALICE
from tests.console.test_walk import with_energies
from tests.doors import links_in_mail
from tests.flow.conftest import run_all_jobs
from tests.simulator import Simulator
from tests.world import make_model
from workers.reconcile import reconcile

pytestmark = [
    pytest.mark.slow,
    pytest.mark.django_db(transaction=True),
    # Idle connections of the browser end after the server did.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]


def totp(secret: str) -> str:
    """The code that an authenticator app shows now."""
    from allauth.mfa.totp.internal.auth import format_hotp_value, hotp_value

    return format_hotp_value(hotp_value(secret, int(time.time()) // 30))


def sign_in(visitor: Visitor, new: NewStaffMember) -> None:
    visitor.driver.delete_all_cookies()
    visitor.open("/console/")
    visitor.fill("Username", new.member.handle)
    visitor.fill("Password", new.password)
    visitor.press("Sign in")
    visitor.fill("Code", totp(new.totp_secret))
    visitor.press("Sign In")
    assert "Queue" in visitor.text


def test_alice_is_forgotten_and_can_prove_it(visitor: Visitor, simulator: Simulator, settings: Any) -> None:
    simulator.alter = with_energies
    make_model()
    rhea, second = (create_staff_member(h, role=r) for h, r in (("rhea", "privacy"), ("reviewer-2", "ml")))

    # Alice asks, first with a mistake.
    visitor.open("/")
    visitor.press("Ask to be forgotten")
    visitor.fill("Your email address", "alice")
    visitor.press("Send the request")
    assert "Enter an email address" in visitor.text
    visitor.fill("Your email address", ALICE.value)
    visitor.fill("What should be forgotten?", "Where I live.")
    visitor.press("Send the request")
    assert "One step is left" in visitor.text
    reconcile()
    confirm, status = links_in_mail(ALICE.value)
    visitor.open(confirm)
    visitor.press("Yes, I asked, and this mailbox is mine")
    assert "Your proof code" in visitor.text
    visitor.press("I have it: delete your copy")
    assert "Where it stands" in visitor.text
    visitor.open(confirm)
    assert "This link does not work" in visitor.text

    # Rhea sets the ground and accepts what was found.
    case = f"/console/cases/{ErasureRequest.objects.get().pk}"
    sign_in(visitor, rhea)
    visitor.open(case)
    visitor.press("Set the ground and search")
    visitor.fill("Legal ground", "consent")
    visitor.press("Set the ground and search")
    run_all_jobs()
    visitor.open(case)
    visitor.press("Accept the targets")
    visitor.press("Accept the targets")
    assert "a second reviewer must start it" in visitor.text

    # The second reviewer starts the work.
    sign_in(visitor, second)
    visitor.open(case)
    visitor.press("Start the work")
    visitor.press("Start the work")
    run_all_jobs()

    # Rhea reads the evidence and decides.
    sign_in_again(visitor, rhea.member)
    visitor.open(case)
    visitor.press("Evidence of attempt 1")
    visitor.open(case)
    visitor.press("Decide on the evidence")
    visitor.choose("Release: every target passed")
    visitor.fill("Reason", "all gates")
    visitor.press("Record the decision")
    run_all_jobs()
    visitor.open(case)
    visitor.press("Erasure certificate")
    assert "you approved the evidence" in visitor.text

    # The second reviewer issues.
    sign_in_again(visitor, second.member)
    visitor.open(case)
    visitor.press("Erasure certificate")
    visitor.press("Sign and issue")
    run_all_jobs()
    reconcile()
    for page in ("/audit", ""):
        visitor.open(f"{case}{page}")
    visitor.open("/console/models")
    visitor.open("/account/2fa/")
    visitor.open("/console/?status=all")

    # Alice reads the result.
    visitor.driver.delete_all_cookies()
    visitor.open(status)
    assert "Erasure certificate" in visitor.text
    assert "PASS" in visitor.text


def sign_in_again(visitor: Visitor, member: StaffMember) -> None:
    """A code works once; a session made for the same person stands for the next half minute."""
    from tests.doors import signed_in

    cookie = signed_in(member).cookies["sessionid"].value
    visitor.driver.delete_all_cookies()
    visitor.open("/account/login/")
    visitor.driver.add_cookie({"name": "sessionid", "value": cookie})


@pytest.mark.parametrize("path", ["/what-happens", "/check", "/nowhere", "/status/LT-AAAA-AAAA-AAAA/0"])
def test_every_other_page_is_sound(visitor: Visitor, path: str) -> None:
    visitor.open(path)


def test_the_api_pages_work_under_our_policy_and_ask_nobody_else(visitor: Visitor) -> None:
    visitor.open("/v1/docs", ours=False)
    WebDriverWait(visitor.driver, 20).until(lambda _: "/v1/requests/{request_id}/withdraw" in visitor.text)
    visitor.check(ours=False)
