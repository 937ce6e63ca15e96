"""Text that must not become part of a model: keys by their form, e-mail addresses.

Forms as their issuers document them; what has no form of its own, a password, is not found.
"""

from __future__ import annotations

import re

SECRETS = {
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "an AWS access key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "a GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{50,})",
    "a Google API key": r"\bAIza[\w-]{35}",
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{30,}",
    "a Slack token": r"\bxox[abeoprs]-[\w-]{10,}",
    "a Stripe key": r"\b[rs]k_live_[A-Za-z0-9]{20,}",
    "an API key": r"\bsk-[\w-]{20,}",
    "a JSON Web Token": r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}",
}
_SECRET = re.compile("|".join(f"(?P<k{n}>{form})" for n, form in enumerate(SECRETS.values())))
_EMAIL = re.compile(r"\b[\w.+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,}\b")
_NAMES = list(SECRETS)


def secret_in(text: str) -> str | None:
    """What kind of secret a text seems to hold, without the secret itself."""
    found = _SECRET.search(text)
    return _NAMES[int((found.lastgroup or "k0")[1:])] if found else None


def email_in(text: str) -> bool:
    """Whether a text holds an e-mail address."""
    return _EMAIL.search(text) is not None
