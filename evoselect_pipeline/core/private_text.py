"""Text that must not become part of a model, nor be shown: keys by their form, e-mail addresses.

Forms as their issuers document them; what has no form of its own, a password, is not found.
"""

from __future__ import annotations

import re
from base64 import b64encode
from urllib.parse import quote

SECRETS = {
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY(?: BLOCK)?-----"
    r"(?s:.*?-----END [A-Z ]*KEY(?: BLOCK)?-----|.*)",
    "an AWS access key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "an Azure key": r"\b(?:Account|SharedAccess)Key=[A-Za-z0-9+/]{43,}={1,2}",
    "an Azure signature": r"\bsig=(?:[A-Za-z0-9+/]|%2[BbFf]){43}(?:=|%3[Dd])",
    "a GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{50,})",
    "a GitLab token": r"\bglpat-[\w-]{20,}",
    "a Google API key": r"\bAIza[\w-]{35,}",
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{30,}",
    "an npm token": r"\bnpm_[A-Za-z0-9]{36,}",
    "a Slack token": r"\bxox[abcdeoprs]-(?=[\w-]{0,40}\d)[\w%-]{10,}",
    "a Stripe key": r"\b[rs]k_live_[A-Za-z0-9]{20,}",
    # Hyphened words are no key: there is a digit in one, and a stretch without hyphens.
    "an API key": r"(?<![\w-])sk-(?=[\w-]{20})(?=[\w-]*\d)[\w-]*[A-Za-z0-9]{16}[\w-]*",
    "a JSON Web Token": r"(?<![\w-])eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}",
}
_BEGINS = "(?=[-ASeghnrsx])"  # one of these letters; most places are passed over by that alone
_FORMS = "|".join(f"(?P<k{n}>{form})" for n, form in enumerate(SECRETS.values()))
_SECRET = re.compile(f"{_BEGINS}(?:{_FORMS})")
_EMAIL = re.compile(r"\b[\w.+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,}\b")
_NAMES = list(SECRETS)


def secret_in(text: str) -> str | None:
    """What kind of secret a text seems to hold, without the secret itself."""
    found = _SECRET.search(text)
    return _kind(found) if found else None


def without_secrets(text: str) -> str:
    """A text as it may be shown: what looks like a secret is named in its place."""
    return _SECRET.sub(lambda found: f"[{_kind(found)}]", text)


def _kind(found: re.Match[str]) -> str:
    return _NAMES[int((found.lastgroup or "k0")[1:])]


def without_key(text: str, key: str) -> str:
    """A text without a key of ours, as it is, in a URL, in JSON or in base64."""
    in_base64 = b64encode(key.encode()).decode("ascii").rstrip("=")
    for form in (key, quote(key, safe=""), key.replace("/", r"\/"), in_base64):
        text = text.replace(form, "***")
    return text


def email_in(text: str) -> bool:
    """Whether a text holds an e-mail address."""
    return _EMAIL.search(text) is not None
