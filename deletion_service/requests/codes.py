"""Reason, ground and refusal codes: audit rows hold these, never free text (compliance sections 2 and 3.4)."""

from __future__ import annotations

from typing import Final

from django.db import models


class Capacity(models.TextChoices):
    """Who decides: we (`controller`) or the sender who already did (`processor`). Never mixed."""

    CONTROLLER = "controller", "controller"
    PROCESSOR = "processor", "processor"


class Regime(models.TextChoices):
    """The law whose clock runs."""

    GDPR = "gdpr", "GDPR"
    CCPA = "ccpa", "CCPA"


class Ground(models.TextChoices):
    """Article 17(1) GDPR, plus acting without a ground."""

    NO_LONGER_NECESSARY = "no_longer_necessary", "the data are no longer necessary"
    CONSENT_WITHDRAWN = "consent_withdrawn", "consent was withdrawn"
    OBJECTION_UPHELD = "objection_upheld", "an objection was upheld"
    UNLAWFUL_PROCESSING = "unlawful_processing", "the data were processed unlawfully"
    LEGAL_OBLIGATION = "legal_obligation_to_erase", "the law requires erasure"
    CHILD = "child_information_society_service", "the data were collected from a child"
    VOLUNTARY = "voluntary", "erased without a legal ground"
    INSTRUCTION = "instruction", "instructed by the controller (processor capacity)"


class Refusal(models.TextChoices):
    """Why a request may be refused. "Technically hard" is not among them."""

    IDENTITY_NOT_VERIFIED = "identity_not_verified", "identity not verified"
    SUSPECTED_FRAUD = "suspected_fraud", "suspected fraud"
    NOT_LOCATABLE = "not_locatable", "the person could not be found in the data"
    NO_GROUND = "no_ground", "no ground for erasure applies"
    EXPRESSION = "expression", "freedom of expression and information"
    LEGAL_OBLIGATION = "legal_obligation", "a legal obligation to keep the data"
    PUBLIC_HEALTH = "public_health", "public interest in public health"
    ARCHIVING_RESEARCH = "archiving_research", "archiving, research or statistics"
    LEGAL_CLAIMS = "legal_claims", "establishment or defence of legal claims"
    US_EXCEPTION = "us_exception", "an exception of the Civil Code section 1798.105(d)"
    MANIFESTLY_UNFOUNDED = "manifestly_unfounded", "manifestly unfounded"
    EXCESSIVE = "excessive", "excessive"
    OUT_OF_TERRITORY = "out_of_territory", "outside the territory of the law"
    NOT_CONTROLLER = "not_controller", "we are not the controller"
    AGENT_NOT_AUTHORISED = "agent_not_authorised", "the agent is not authorised"
    DUPLICATE_OF = "duplicate_of", "the same request is already under way"
    INSUFFICIENT_IDENTIFICATION = "insufficient_identification", "the instruction identifies nobody"
    MODEL_UNKNOWN = "model_unknown", "the model is not known here"
    INSTRUCTION_INVALID = "instruction_invalid", "the instruction cannot be carried out as sent"


SECOND_REVIEWER_REFUSALS: Final = frozenset({Refusal.MANIFESTLY_UNFOUNDED, Refusal.EXCESSIVE})
PROCESSOR_REFUSALS: Final = frozenset(
    {
        Refusal.NOT_LOCATABLE,
        Refusal.INSUFFICIENT_IDENTIFICATION,
        Refusal.MODEL_UNKNOWN,
        Refusal.INSTRUCTION_INVALID,
    }
)


class Outcome(models.TextChoices):
    """How a request ended; `erased` needs PASS on all targets and proof of retirement."""

    ERASED = "erased", "erased"
    NOT_ERASED = "not_erased", "not erased"
    PARTIALLY_ERASED = "partially_erased", "partially erased"
    MITIGATED_INTERIM = "mitigated_interim", "mitigated for now"
    SCHEDULED_RETRAIN = "scheduled_retrain", "scheduled for retraining"
    NO_PERSONAL_DATA_FOUND = "no_personal_data_found", "no personal data found"
    REFUSED = "refused", "refused"
    WITHDRAWN = "withdrawn", "withdrawn"
    EXPIRED = "expired", "expired"


class OutcomePlan(models.TextChoices):
    """What will be done (shown to the person); `retrain_at_next_cycle` needs a date."""

    UNLEARN_NOW = "unlearn_now", "unlearn now"
    RETRAIN = "retrain_at_next_cycle", "retrain at the next cycle"
    FILTER = "filter_until_retrain", "filter until retraining"
    NOT_LOCATABLE = "not_locatable", "cannot be located"


class ReasonCode(models.TextChoices):
    """Why a request moved. Stored with every event."""

    REQUEST_RECEIVED = "request_received", "request received"
    IDENTITY_LINK_SENT = "identity_link_sent", "identity link sent"
    IDENTITY_PROVEN = "identity_proven", "identity proven"
    VOUCHED_BY_SENDER = "vouched_by_sender", "identity vouched for by the sender"
    LINK_EXPIRED = "link_expired", "identity link expired"
    GROUND_SET = "ground_set", "ground set"
    QUESTION_SENT = "question_sent", "question sent to the data subject"
    ANSWER_RECEIVED = "answer_received", "answer received"
    TARGETS_FIXED = "targets_fixed", "targets fixed"
    NOTHING_FOUND = "nothing_found", "nothing found"
    STILL_LEARNED = "still_learned", "the records are gone, and a model that learned from them serves"
    START_APPROVED = "start_approved", "start approved"
    ALL_TARGETS_JUDGED = "all_targets_judged", "every target has a verdict"
    ANOTHER_ATTEMPT = "another_attempt", "sent back for another attempt"
    EVIDENCE_APPROVED = "evidence_approved", "evidence approved"
    RELEASE_DECLINED = "release_declined", "no target may be released"
    PROMOTION_CONFLICT = "promotion_conflict", "the registry moved meanwhile"
    STILL_READABLE = "still_readable", "old weights are still readable"
    SOURCE_STILL_PRESENT = "source_still_present", "source rows are still present"
    VERSION_UNACCOUNTED = "version_unaccounted", "a version may hold the data and nobody knows"
    CERTIFICATE_ISSUED = "certificate_issued", "certificate issued"
    REPORT_ISSUED = "report_issued", "attempt report issued"
    NO_RECIPIENTS_RECORDED = "no_recipients_recorded", "no recipients were recorded, so none were told"
    REFUSED = "refused", "refused"
    WITHDRAWN_BY_SUBJECT = "withdrawn_by_subject", "withdrawn by the data subject"
    WITHDRAWN_BY_SENDER = "withdrawn_by_sender", "withdrawn by the sender"
    LEGAL_HOLD = "legal_hold", "legal hold"
    HOLD_LIFTED = "hold_lifted", "hold lifted"


class ExtensionReason(models.TextChoices):
    """Why more time is needed (Article 12(3) GDPR names these two)."""

    COMPLEXITY = "complexity", "the request is complex"
    NUMBER_OF_REQUESTS = "number_of_requests", "we have received many requests"


class DataClass(models.TextChoices):
    """Classes of sealed data (compliance section 6.1)."""

    PAYLOAD = "A", "payload"
    IDENTITY = "B", "identity proof"
    CONTACT = "C", "contact"
    VAULT = "V", "verification probes"


# What runs derive from the payload; it is never sealed, only wiped (class F of the same section).
DERIVED_CLASS: Final = "F"


class MatchReason(models.TextChoices):
    """Why a reviewer lets an identifier count that the identity check did not prove."""

    DOCUMENT_SEEN = "document_seen", "a document was seen"
    KNOWN_CUSTOMER = "known_customer", "matched to a known customer record"
    COURT_ORDER = "court_order", "a court or authority ordered it"
    CONTROLLER_INSTRUCTION = "controller_instruction", "the controller instructed it"
