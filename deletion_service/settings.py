"""Settings: typed readers of the environment on top, then plain assignments. Only clients read more of it.

Limits that decide a certificate are verdict policies, not settings.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import dj_database_url
import structlog
from django.core.exceptions import ImproperlyConfigured

from deletion_service.logs import route_instead_of_path, traceback_without_values

BASE_DIR = Path(__file__).resolve().parent.parent


def env_str(name: str, default: str = "") -> str:
    """Return a variable, or `default` when it is unset or empty."""
    return os.environ.get(name, "") or default


def env_bool(name: str, *, default: bool) -> bool:
    """Return a variable that must be one of 1, true, yes, 0, false, no."""
    value = env_str(name).lower()
    if not value:
        return default
    if value not in {"1", "true", "yes", "0", "false", "no"}:
        raise ImproperlyConfigured(f"{name} must be true or false")
    return value in {"1", "true", "yes"}


def env_int(name: str, default: int) -> int:
    """Return a variable that must be a whole number."""
    value = env_str(name)
    if not value:
        return default
    try:
        return int(value)
    except ValueError as exc:
        raise ImproperlyConfigured(f"{name} must be a whole number") from exc


def env_path(name: str, default: Path) -> Path:
    """Return a variable as an absolute path."""
    return Path(env_str(name, str(default))).resolve()


def env_list(name: str, default: str = "") -> list[str]:
    """Return a comma-separated variable as a list."""
    return [part.strip() for part in env_str(name, default).split(",") if part.strip()]


def env_document(name: str) -> dict[str, Any]:
    """Return the JSON object in the file that a variable names, decimals as strings as in every document that is
    digested; an empty one when it is unset."""
    if not env_str(name):
        return {}
    path = env_path(name, Path())
    try:
        document = json.loads(path.read_text(encoding="utf-8"), parse_float=str)
    except (OSError, ValueError) as exc:
        raise ImproperlyConfigured(f"{name}: {path.name} cannot be read as JSON") from exc
    if not isinstance(document, dict):
        raise ImproperlyConfigured(f"{name}: {path.name} is not a JSON object")
    return document


def env_secret(name: str, *, file_default: Path) -> str:
    """Return a secret from `NAME`, from the file `NAME_FILE`, or from `file_default`; refuse to invent one."""
    if value := env_str(name):
        return value
    path = env_path(f"{name}_FILE", file_default)
    if not path.is_file():
        raise ImproperlyConfigured(
            f"{name} is not set and {path.name} does not exist; run: python manage.py create_keys"
        )
    return path.read_text(encoding="utf-8").strip()


# --- where things are -----------------------------------------------------------------------------------------------

HOME_DIR = env_path("LETHE_HOME", BASE_DIR / "var" / "lethe")
SECRETS_DIR = env_path("LETHE_SECRETS_DIR", HOME_DIR / "secrets")
KEY_STORE_DIR = env_path("LETHE_KEY_STORE_DIR", HOME_DIR / "keystore")
WORK_DIR = env_path("LETHE_WORK_DIR", HOME_DIR / "work")
REGISTRY_ROOT = env_path("LETHE_REGISTRY_ROOT", HOME_DIR / "registry")
SOURCE_ROOT = env_path("LETHE_SOURCE_ROOT", HOME_DIR / "sources")
PUBLISH_DIR = env_path("LETHE_PUBLISH_DIR", HOME_DIR / "published")

_CREATING_KEYS = "create_keys" in sys.argv
TESTING = env_bool("LETHE_TESTING", default=False)
DEBUG = env_bool("LETHE_DEBUG", default=False)
SECRET_KEY = (
    "only-for-create-keys"  # noqa: S105 - never signs anything: that command runs before the real key exists
    if _CREATING_KEYS
    else env_secret("LETHE_SECRET_KEY", file_default=SECRETS_DIR / "secret_key")
)
KEY_ENCRYPTION_KEY_FILE = env_path("LETHE_KEK_FILE", SECRETS_DIR / "kek")
ISSUER_KEY_FILE = env_path("LETHE_ISSUER_KEY_FILE", SECRETS_DIR / "issuer.pem")
APPROVER_KEY_FILE = env_path("LETHE_APPROVER_KEY_FILE", SECRETS_DIR / "approver.pem")
LOG_KEY_FILE = env_path("LETHE_LOG_KEY_FILE", SECRETS_DIR / "log.pem")
ISSUER_DOCUMENT_FILE = env_path("LETHE_ISSUER_DOCUMENT_FILE", SECRETS_DIR / "issuer.json")

# --- web ------------------------------------------------------------------------------------------------------------

ALLOWED_HOSTS = env_list("LETHE_ALLOWED_HOSTS", "localhost,127.0.0.1,[::1]")
PUBLIC_URL = env_str("LETHE_PUBLIC_URL", "http://127.0.0.1:8000")
CSRF_TRUSTED_ORIGINS = [PUBLIC_URL]
ROOT_URLCONF = "deletion_service.urls"
WSGI_APPLICATION = "deletion_service.wsgi.application"
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "whitenoise.runserver_nostatic",
    "django.contrib.staticfiles",
    "axes",
    "allauth",
    "allauth.account",
    "allauth.mfa",
    "rest_framework",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "deletion_service.access",
    "deletion_service.audit",
    "deletion_service.requests",
    "deletion_service.targets",
    "deletion_service.certificates",
    "deletion_service.notices",
    "deletion_service.portal",
    "deletion_service.console",
    "deletion_service.api",
    "workers",
]
MIGRATION_MODULES = {
    app: f"migrations.{app}" for app in ("access", "audit", "requests", "targets", "certificates", "notices", "api")
}
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "csp.middleware.CSPMiddleware",
    "deletion_service.caching.never_store_session_pages",
    "deletion_service.addresses.refuse_nul",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "allauth.account.middleware.AccountMiddleware",
    "axes.middleware.AxesMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        # Before the apps: error pages, and the sign-in pages of django-allauth in our own dress.
        "DIRS": [BASE_DIR / "deletion_service" / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "deletion_service.context.deployment",
            ]
        },
    }
]
STATIC_URL = "/static/"
STATIC_ROOT = BASE_DIR / "staticfiles"
STATICFILES_DIRS = [BASE_DIR / "deletion_service" / "static"]
# Files are served from where they lie, so that a fresh clone needs no collecting step and no warning about one.
WHITENOISE_USE_FINDERS = True
warnings.filterwarnings("ignore", message="No directory at", module="django.core.handlers.base")
LANGUAGE_CODE = "en"
LANGUAGES = [("en", "English")]
USE_I18N = True
USE_TZ = True
TIME_ZONE = env_str("LETHE_TIME_ZONE", "UTC")
HOLIDAY_COUNTRY = env_str("LETHE_HOLIDAY_COUNTRY")
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATA_UPLOAD_MAX_MEMORY_SIZE = env_int("LETHE_MAX_BODY_BYTES", 1 << 20)
# What a stranger uploads is never written to a disk.
FILE_UPLOAD_HANDLERS = ["deletion_service.portal.uploads.BoundedMemoryUpload"]
UPLOAD_MAX_BYTES = env_int("LETHE_MAX_UPLOAD_BYTES", 12 << 20)
BEHIND_PROXY = env_bool("LETHE_BEHIND_PROXY", default=False)
NUM_PROXIES = env_int("LETHE_NUM_PROXIES", 0)
if BEHIND_PROXY and not NUM_PROXIES:
    # Without it every stranger has the proxy's address: one rate limit and one lockout for all of them.
    raise ImproperlyConfigured("LETHE_BEHIND_PROXY needs LETHE_NUM_PROXIES, the number of proxies in front")

# --- database -------------------------------------------------------------------------------------------------------

DATABASE_URL = env_str("DATABASE_URL")
if DATABASE_URL:
    DATABASES: dict[str, Any] = {"default": dict(dj_database_url.parse(DATABASE_URL, conn_max_age=60))}
    if "postgresql" not in DATABASES["default"]["ENGINE"]:
        raise ImproperlyConfigured("DATABASE_URL must name a PostgreSQL database; leave it unset for SQLite")
else:
    # One web process, one runner, short transactions; writers take the lock at BEGIN instead of failing at upgrade.
    DATABASES = {
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": env_path("LETHE_SQLITE_FILE", HOME_DIR / "lethe.sqlite3"),
            "OPTIONS": {
                "timeout": 20,
                "transaction_mode": "IMMEDIATE",
                "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA secure_delete=ON; "
                # Without it INSERT OR REPLACE deletes rows past the triggers that forbid it.
                "PRAGMA recursive_triggers=ON;",
            },
        }
    }

# --- queue: hints only ----------------------------------------------------------------------------------------------

REDIS_URL = env_str("REDIS_URL")
QUEUES = tuple(env_list("LETHE_QUEUES", "cpu,gpu.24g,gpu.80g"))
COMPUTE_QUEUE = env_str("LETHE_COMPUTE_QUEUE", "cpu")
CELERY_OPTIONS: dict[str, Any] = {
    "task_ignore_result": True,
    "task_serializer": "json",
    "accept_content": ["json"],
    "task_acks_late": False,
    "worker_prefetch_multiplier": 1,
    "worker_max_tasks_per_child": 1,
    "worker_send_task_events": False,
    "broker_connection_retry_on_startup": True,
    "broker_transport_options": {"socket_timeout": 2, "socket_connect_timeout": 2},
    "redis_socket_timeout": 2,
    "redis_socket_connect_timeout": 2,
}
LEASE_S = env_int("LETHE_LEASE_S", 90)
HEARTBEAT_S = env_int("LETHE_HEARTBEAT_S", 15)
JOB_MAX_ATTEMPTS = env_int("LETHE_JOB_MAX_ATTEMPTS", 5)
JOB_DEADLINE_S = env_int("LETHE_JOB_DEADLINE_S", 24 * 3600)
JOB_BACKOFF_S = env_int("LETHE_JOB_BACKOFF_S", 5)

# --- compute --------------------------------------------------------------------------------------------------------

DEVICE = env_str("LETHE_DEVICE", "cpu")
DTYPE = env_str("LETHE_DTYPE", "float32")
TORCH_THREADS = env_int("LETHE_TORCH_THREADS", 0)
# Two take halves of a training step and measure two models at a time, each with these threads and its own memory.
COMPUTE_PROCESSES = env_int("LETHE_COMPUTE_PROCESSES", 1)
# Stores of stacked adapters (`ml.exact`), which training manifests name; each on one host, which runs all its jobs.
EXACT_STORES = str(env_path("LETHE_EXACT_STORES", HOME_DIR / "exact"))
STORE_WAIT_S = env_int("LETHE_STORE_WAIT_S", 60)
UNLEARNING_METHOD = env_str("LETHE_METHOD", "energy_boundary")
# Settings of that method, a JSON file; its own where one is left out.
METHOD_SETTINGS = env_document("LETHE_METHOD_SETTINGS")
VERDICT_POLICY = env_str("LETHE_POLICY", "reference-2")
# Fixed seeds make a run repeatable for a demonstration; unset, each run draws its own.
FIXED_SEED = env_int("LETHE_FIXED_SEED", 0) or None

# --- who asks, how long ---------------------------------------------------------------------------------------------

CONTROLLER_NAME = env_str("LETHE_CONTROLLER_NAME", "Example Controller")
# How long a withdrawn request whose evidence was seen counts as an attempt when the same person asks again.
MARK_DAYS = env_int("LETHE_MARK_DAYS", 365)
CONTACT_EMAIL = env_str("LETHE_CONTACT_EMAIL", "privacy@localhost")
DEFAULT_REGIME = env_str("LETHE_DEFAULT_REGIME", "gdpr")
SUPERVISORY_AUTHORITY = env_str("LETHE_SUPERVISORY_AUTHORITY", "the data protection authority of your country")
IDENTITY_LINK_HOURS = env_int("LETHE_IDENTITY_LINK_HOURS", 72)
COMPLAINT_WINDOW_DAYS = env_int("LETHE_COMPLAINT_WINDOW_DAYS", 30)
FOUR_EYES_ON_START = env_bool("LETHE_FOUR_EYES_ON_START", default=True)
MAX_UNLEARNING_ATTEMPTS = env_int("LETHE_MAX_UNLEARNING_ATTEMPTS", 3)
GDPR_IDENTITY_PAUSE = env_bool("LETHE_GDPR_IDENTITY_PAUSE", default=False)

# --- certificates ---------------------------------------------------------------------------------------------------

LOG_ORIGIN = env_str("LETHE_LOG_ORIGIN", "lethe.example/log")
KEY_CUSTODY = env_str("LETHE_KEY_CUSTODY", "one_host")
RECHECK_DAYS = env_int("LETHE_RECHECK_DAYS", 365)
IMAGE_DIGEST = env_str("LETHE_IMAGE_DIGEST")

# --- earlier deletions ------------------------------------------------------------------------------------------------

# A vault keeps the person's own probes sealed, to test later versions; off unless days and the legal basis are named.
VAULT_DAYS = env_int("LETHE_VAULT_DAYS", 0)
VAULT_BASIS = env_str("LETHE_VAULT_BASIS")
if not 0 <= VAULT_DAYS <= 90:
    raise ImproperlyConfigured("LETHE_VAULT_DAYS is 0 (no vault) to 90")
if VAULT_DAYS and not 0 < len(VAULT_BASIS) <= 200:
    raise ImproperlyConfigured("LETHE_VAULT_DAYS needs LETHE_VAULT_BASIS: the legal basis, in up to 200 letters")

# --- mail -----------------------------------------------------------------------------------------------------------

EMAIL_BACKEND = env_str("LETHE_EMAIL_BACKEND", "django.core.mail.backends.smtp.EmailBackend")
EMAIL_FILE_PATH = str(env_path("LETHE_EMAIL_FILE_PATH", HOME_DIR / "mail"))
EMAIL_HOST = env_str("LETHE_EMAIL_HOST", "localhost")
EMAIL_PORT = env_int("LETHE_EMAIL_PORT", 25)
EMAIL_TIMEOUT = 10
EMAIL_USE_TLS = env_bool("LETHE_EMAIL_STARTTLS", default=False)
EMAIL_USE_SSL = env_bool("LETHE_EMAIL_TLS", default=False)
EMAIL_HOST_USER = env_str("LETHE_EMAIL_USER")
EMAIL_HOST_PASSWORD = (
    env_secret("LETHE_EMAIL_PASSWORD", file_default=SECRETS_DIR / "email_password") if EMAIL_HOST_USER else ""
)
if EMAIL_USE_TLS and EMAIL_USE_SSL:
    raise ImproperlyConfigured("LETHE_EMAIL_STARTTLS and LETHE_EMAIL_TLS exclude each other; set one")
DEFAULT_FROM_EMAIL = env_str("LETHE_FROM_EMAIL", "privacy@localhost")

# --- staff accounts -------------------------------------------------------------------------------------------------

AUTHENTICATION_BACKENDS = ["axes.backends.AxesStandaloneBackend", "django.contrib.auth.backends.ModelBackend"]
PASSWORD_HASHERS = ["django.contrib.auth.hashers.Argon2PasswordHasher"]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in ("UserAttributeSimilarityValidator", "MinimumLengthValidator", "CommonPasswordValidator")
]
LOGIN_URL = "account_login"
LOGIN_REDIRECT_URL = "console:queue"
ACCOUNT_LOGIN_METHODS = {"username"}
ACCOUNT_SIGNUP_FIELDS = ["username*", "password1*", "password2*"]
ACCOUNT_EMAIL_VERIFICATION = "none"
ACCOUNT_ADAPTER = "deletion_service.access.accounts.StaffAccountAdapter"
MFA_SUPPORTED_TYPES = ["totp", "recovery_codes"]
MFA_TOTP_ISSUER = "Lethe"
MFA_ADAPTER = "deletion_service.access.accounts.StaffMfaAdapter"
# Deciding needs a second factor in the session; turning this off is for a demonstration on one machine.
REQUIRE_SECOND_FACTOR = env_bool("LETHE_REQUIRE_SECOND_FACTOR", default=True)
ALLAUTH_TRUSTED_PROXY_COUNT = NUM_PROXIES
# Whatever a stranger types as a user name is kept as a keyed digest only.
AXES_USERNAME_CALLABLE = "deletion_service.access.accounts.lockout_name"
AXES_CLIENT_IP_CALLABLE = "deletion_service.access.accounts.client_address"
AXES_CLIENT_STR_CALLABLE = "deletion_service.access.accounts.lockout_log_name"
AXES_SENSITIVE_PARAMETERS = ["username", "login", "ip_address", "csrfmiddlewaretoken", "next"]
AXES_LOCKOUT_TEMPLATE = "429.html"
AXES_FAILURE_LIMIT = 5
AXES_COOLOFF_TIME = 0.25
AXES_LOCKOUT_PARAMETERS = [["username", "ip_address"]]
AXES_VERBOSE = False
SESSION_COOKIE_AGE = 8 * 3600
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = "Lax"
CSRF_COOKIE_SAMESITE = "Lax"
CSRF_COOKIE_HTTPONLY = True

# --- headers --------------------------------------------------------------------------------------------------------

SECURE_COOKIES = PUBLIC_URL.startswith("https://")
SESSION_COOKIE_SECURE = SECURE_COOKIES
CSRF_COOKIE_SECURE = SECURE_COOKIES
SECURE_HSTS_SECONDS = 31_536_000 if SECURE_COOKIES else 0
SECURE_SSL_REDIRECT = SECURE_COOKIES
SECURE_REDIRECT_EXEMPT = [r"^healthz$", r"^readyz$"]
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if BEHIND_PROXY else None
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": ["'none'"],
        "style-src": ["'self'"],
        "img-src": ["'self'", "data:"],
        "font-src": ["'self'"],
        "script-src": ["'self'"],
        "connect-src": ["'self'"],
        "form-action": ["'self'"],
        "frame-ancestors": ["'none'"],
        "base-uri": ["'none'"],
    }
}

# --- REST -----------------------------------------------------------------------------------------------------------

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "deletion_service.api.authentication.ApiKeyAuthentication",
        "deletion_service.api.authentication.StaffSessionAuthentication",
    ],
    "DEFAULT_PERMISSION_CLASSES": ["deletion_service.api.permissions.HasScope"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["deletion_service.api.parsers.StrictJsonParser"],
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "DEFAULT_THROTTLE_CLASSES": [
        "deletion_service.api.throttles.PrincipalThrottle",
        "deletion_service.api.throttles.AnonymousThrottle",
    ],
    "DEFAULT_THROTTLE_RATES": {
        "principal": env_str("LETHE_API_RATE", "600/min"),
        "anonymous": env_str("LETHE_ANONYMOUS_RATE", "60/min"),
        "ask": env_str("LETHE_ASK_RATE", "20/hour"),
        "portal": env_str("LETHE_PORTAL_RATE", "30/min"),
        "status": env_str("LETHE_STATUS_RATE", "60/min"),
    },
    "EXCEPTION_HANDLER": "deletion_service.api.errors.problem_response",
    "UNAUTHENTICATED_USER": None,
    "NUM_PROXIES": NUM_PROXIES,
}
SPECTACULAR_SETTINGS = {
    "TITLE": "Lethe",
    "DESCRIPTION": "Verified deletion of a data subject's influence from trained language models.",
    "VERSION": "1.0.0",
    "OAS_VERSION": "3.1.0",
    "SERVE_INCLUDE_SCHEMA": False,
    "SCHEMA_PATH_PREFIX": "/v1",
    "ENUM_GENERATE_CHOICE_DESCRIPTION": False,
    "ENUM_NAME_OVERRIDES": {
        "RequestStatus": "deletion_service.requests.statuses.RequestStatus",
        "TargetStatus": "deletion_service.targets.statuses.TargetStatus",
        "VersionStatus": "deletion_service.targets.statuses.VersionStatus",
        "CertificateStatus": "deletion_service.certificates.models.Certificate.Status",
        "RequestOutcome": "deletion_service.requests.codes.Outcome",
        "VersionKind": "deletion_service.targets.models.ModelVersion.Kind",
        "JobKind": "deletion_service.targets.statuses.JobKind",
        "DecisionReason": "deletion_service.certificates.models.EvidenceDecision.Reason",
        "WeightsAction": "deletion_service.targets.models.ContaminatedVersion.Action",
        "WeightsProbe": "deletion_service.targets.models.ContaminatedVersion.Probe",
        "SourceAction": "deletion_service.targets.models.SourceErasure.Action",
        "SourceProbe": "deletion_service.targets.models.SourceErasure.Probe",
        "ClockState": "deletion_service.requests.models.Clock.State",
        "JobState": "deletion_service.targets.statuses.JobState",
        "CheckOutcome": ["ok", "failed", "not checked"],
        "GateResult": ["PASS", "FAIL", "INCONCLUSIVE", "ERROR"],
        "MeasuredVerdict": ["PASS", "FAIL", "INCONCLUSIVE"],
        "TargetVerdict": "deletion_service.targets.statuses.Verdict",
    },
    "SERVERS": [],
}

# --- logs: ids and numbers only ---------------------------------------------------------------------------------------

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "json": {
            "()": structlog.stdlib.ProcessorFormatter,
            "processors": [
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                traceback_without_values,
                structlog.processors.JSONRenderer(),
            ],
            "foreign_pre_chain": [
                structlog.stdlib.add_log_level,
                structlog.processors.TimeStamper(fmt="iso"),
                route_instead_of_path,
            ],
        }
    },
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "json"}},
    "root": {"handlers": ["console"], "level": env_str("LETHE_LOG_LEVEL", "INFO")},
    "loggers": {
        # SQL carries parameters, request lines carry status links: neither belongs in a log.
        "django.db.backends": {"level": "WARNING"},
        "django.request": {"level": "ERROR"},
        "django.server": {"level": "CRITICAL"},
    },
}
structlog.configure(
    processors=[
        structlog.stdlib.filter_by_level,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
        structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
    ],
    logger_factory=structlog.stdlib.LoggerFactory(),
    cache_logger_on_first_use=True,
)
