"""Which process holds which key: the issuer and log keys belong to workers, the approver key to the web process."""

from __future__ import annotations

from datetime import timedelta

from django.conf import settings
from django.utils import timezone

from deletion_service.certificates.models import VerdictPolicy
from deletion_service.certificates.signing import (
    IssuerDocument,
    IssuerKey,
    KnownPolicy,
    LogDescription,
    Signer,
    generate_key_file,
    issuer_key,
    load_signer,
)
from deletion_service.errors import SigningError

_VALID_FOR = timedelta(days=2 * 365)


def issuer_signer() -> Signer:
    """Return the workers' signer; a web process has no such file and fails here."""
    return load_signer(settings.ISSUER_KEY_FILE)


def approver_signer() -> Signer:
    """Return the web process's signer; a worker has no such file and fails here."""
    return load_signer(settings.APPROVER_KEY_FILE)


def log_signer() -> Signer:
    """Return the signer of log checkpoints, held by workers."""
    return load_signer(settings.LOG_KEY_FILE)


def sign_disposal(content: bytes) -> tuple[str, str]:
    """Sign the record of a disposal with the issuer key: (key id, signature in hexadecimal)."""
    signer = issuer_signer()
    return signer.keyid, signer.sign(content).hex()


def create_signing_keys() -> IssuerDocument:
    """Create the three key files and the issuer document that describes them; refuses to overwrite."""
    start = timezone.now()
    keys: list[IssuerKey] = []
    for role, path in (
        ("issuer", settings.ISSUER_KEY_FILE),
        ("approver", settings.APPROVER_KEY_FILE),
        ("log", settings.LOG_KEY_FILE),
    ):
        signer = generate_key_file(path)
        keys.append(issuer_key(signer, role=role, not_before=start, not_after=start + _VALID_FOR))  # type: ignore[arg-type]
    document = IssuerDocument(
        issuer=settings.CONTROLLER_NAME, keys=tuple(keys), log=LogDescription(settings.LOG_ORIGIN), policies=()
    )
    settings.ISSUER_DOCUMENT_FILE.write_bytes(document.to_bytes())
    return document


def issuer_document() -> IssuerDocument:
    """Return the published document: keys with their validity, the log's origin, every policy ever judged by.

    Raises:
        SigningError: the deployment has no keys yet.
    """
    path = settings.ISSUER_DOCUMENT_FILE
    if not path.is_file():
        raise SigningError("this deployment has no issuer document; run manage.py create_keys")
    stored = IssuerDocument.from_bytes(path.read_bytes())
    policies = tuple(
        KnownPolicy(row.name, str(row.version), row.purpose, row.sha256)  # type: ignore[arg-type]  # one of the two words
        for row in VerdictPolicy.objects.order_by("name", "version")
    )
    return IssuerDocument(issuer=stored.issuer, keys=stored.keys, log=stored.log, policies=policies)
