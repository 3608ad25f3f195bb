"""Locations that are named by a URI, and what a URI must not hold.

A recipe is copied into the run's folder, its card and its log, and error lines travel further. So a URI that holds
credentials is refused wherever it is named, and keys belong in the environment. What a URI may hold is listed here;
anything else in it could be a key, and is neither accepted nor shown.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import unquote_plus

PAIR = re.compile(r"[^/]*:[^/]*@")  # a name and its key, within one part of a path
TIME = re.compile(r"(^|[^\d:])\d\d:\d\d(:\d\d(\.\d+)?)?Z?@$")  # of day, alone in front of the @
SECRET = re.compile(
    r"[?&;]\s*[\w.-]*(secret|token|key(_?id)?|sig|signature|pass(word|wd|phrase)?|pwd|cred(ential)?s?|auth)=",
    re.IGNORECASE,
)
STORES = (
    r"s3[an]?|gc?s|abfss?|wasbs?|adl|dbfs|hdfs|viewfs|hf|https?|s?ftp|oss|cosn?|obs|swift|r2|b2|ossfs|webdavs?|ks3|tos"
)
NEARLY = re.compile(rf"\s*({STORES}):(?!//).*[@?]", re.IGNORECASE | re.DOTALL)
BUCKET = r"[\w.-]*"
HOST = rf"({BUCKET}|\[[0-9a-f:.]+\])(:\d{{1,5}})?"
SWITCH, WHOLE, FILE = r"true|false|0|1", r"\d+", r"[^@?]+"
NAME = re.compile(r"[A-Za-z]{1,16}([_.-][A-Za-z]{1,16}){0,4}")  # of a parameter; a key looks different
PARAMETERS = {  # of URIs for pyarrow that hold no secret, and the form of their values
    "allow_bucket_creation": SWITCH,
    "allow_bucket_deletion": SWITCH,
    "allow_delayed_open": SWITCH,
    "background_writes": SWITCH,
    "blob_storage_authority": HOST,
    "buffer_size": WHOLE,
    "client_id": r"[\w-]{1,64}",
    "credential_kind": r"[a-z_]{1,30}",
    "default_block_size": WHOLE,
    "default_bucket_location": r"[\w-]{1,30}",
    "dfs_storage_authority": HOST,
    "enable_tls": SWITCH,
    "endpoint_override": rf"(https?://)?{HOST}(/[\w./~-]*)?",
    "kerb_ticket": FILE,
    "project_id": r"[a-z0-9.:-]{1,64}",
    "region": r"[a-z0-9-]{1,30}",
    "replication": WHOLE,
    "retry_limit_seconds": r"\d+(\.\d+)?",
    "scheme": r"https?",
    "smart_defaults": r"[a-z-]{1,30}",
    "tenant_id": r"[\w.-]{1,64}",
    "tls_ca_dir_path": FILE,
    "tls_ca_file_path": FILE,
    "tls_verify_certificates": SWITCH,
    "user": r"[\w.-]{1,64}(@[\w.-]{1,64})?",
}
FRONT = {  # what may precede an @: a container or account, a user, or the word for no credentials at all
    "abfs": r"[a-z0-9$-]{1,63}",
    "hdfs": r"[\w.-]{1,32}",
    "gs": "anonymous",
}
ENVIRONMENT = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, or AWS_PROFILE",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "abfs": "AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET",
    "hdfs": "KRB5CCNAME",
    "hf": "HF_TOKEN",
}
FAMILY = {"s3a": "s3", "s3n": "s3", "gcs": "gs", "abfss": "abfs", "viewfs": "hdfs"}
SCHEME = r"(?<![a-z0-9+.-])[a-z][a-z0-9+.-]{0,30}"
IN_TEXT = re.compile(rf"({SCHEME}(?=:/)|(?<![a-z0-9])(?:{STORES})):/*(?=[^\s/])\S*", re.IGNORECASE)
LOCAL = ("/", "./", "../", "~")  # how a path of a recipe begins
MARKS, QUOTES = ".,:;)]}", "'\""  # that a sentence puts after a URI
ENCODINGS = 8  # nested levels; nobody means more
LISTS = (list, tuple)
NESTED = (dict, list, tuple)
HIDDEN = "credentials-not-shown"  # a valid name itself, so that a message may be cleaned twice


def is_uri(location: str | Path) -> bool:
    """Return whether a location is one of an object store or another remote file system."""
    return _parts(str(location)) is not None


def _parts(text: str) -> tuple[str, str] | None:
    """Return the scheme of a URI in lower case, and what follows ://."""
    before, mark, rest = text.partition("://")
    scheme = re.split(r"[^A-Za-z0-9+.-]", before)[-1].lstrip("0123456789+.-")
    return (scheme.lower(), rest) if mark and scheme and "/" not in before else None


def refusal(text: str) -> str | None:
    """Return why a text is refused as a location, without quoting it; None if it is accepted, or is no URI at all.

    Refused are credentials in any spelling: anything in front of the host that is no plain name, parameters not known
    to be harmless, values that do not have the form of their parameter, and anything out of place.
    """
    decoded = _decoded(text) if "%" in text else text
    if ":" not in decoded:
        return None
    parts = _parts(text)
    if parts is None:
        nearly = NEARLY.match(decoded)
        if nearly:
            return f"is no URI, which begins with {nearly[1]}://; {_advice(nearly[1])}"
        before, mark, rest = decoded.partition("://")
        meant = mark and ("/" not in before or re.search(rf"({STORES})$", before, re.IGNORECASE))
        odd = (meant and _has_pair(rest)) or (SECRET.search(decoded) and not decoded.startswith(LOCAL))
        return "holds another place, with what looks like credentials; " + _advice("") if odd else None
    scheme, rest = parts
    location, _, query = rest.partition("?")
    problem = _location_problem(scheme, location) or _query_problem(query)
    return problem and f"{problem}; {_advice(scheme)}"


def _advice(scheme: str) -> str:
    names = ENVIRONMENT.get(_family(scheme))
    return "credentials belong into the environment of all nodes" + (f" ({names})" if names else "")


def _family(scheme: str) -> str:
    return FAMILY.get(scheme.lower(), scheme.lower())


def _decoded(text: str) -> str:
    """Return a text with its percent encoding undone, `ENCODINGS` levels of it at most."""
    for _ in range(ENCODINGS):
        text, before = unquote_plus(text), text
        if text == before:
            break
    return text


def _location_problem(scheme: str, location: str) -> str | None:
    """Return what is wrong before the question mark."""
    authority, _, path = location.partition("/")
    authority, path = _decoded(authority), _decoded(path)
    front, mark, host = authority.rpartition("@")
    if mark and not re.fullmatch(FRONT.get(_family(scheme), r"(?!)"), front):
        return "holds credentials in front of an @"
    bucket = _family(scheme) in ("s3", "gs", "hf")
    if not re.fullmatch(BUCKET if bucket else HOST, host, re.IGNORECASE | re.ASCII):
        return f"holds more than {'a name' if bucket else 'a host and a port'} between {scheme}:// and the next /"
    if "://" in path or ("@" in path and ":" in authority and _family(scheme) != "hdfs"):
        return "holds another place in its path"
    if _has_pair(path) or SECRET.search(path):
        return "holds what looks like credentials in its path"
    return "holds a #, which is written %23" if "#" in location else None


def _has_pair(path: str) -> bool:
    """Return whether a part of a path looks like a name and its key in front of an @; a time of day is none."""
    both = ":" in path and "@" in path  # else the pattern would be tried at each character of a long path
    return both and any(not TIME.search(pair[0]) for pair in PAIR.finditer(path))


def _query_problem(query: str) -> str | None:
    """Return what is wrong after the question mark."""
    for part in filter(None, query.split("&")):
        key, mark, value = part.partition("=")
        key = _decoded(key)
        if key not in PARAMETERS:
            parameter = f"the parameter {key!r}" if mark and NAME.fullmatch(key) else "a parameter (not shown)"
            return f"has {parameter}, wanted only such as hold no secret: endpoint_override, region, scheme and others"
        if not re.fullmatch(PARAMETERS[key], _decoded(value), re.IGNORECASE | re.ASCII):
            return f"has a value (not shown) that is none for the parameter {key!r}"
    return None


def problems(value: object, path: str = "") -> Iterator[str]:
    """Yield one text for each value in settings that is refused: its path and why."""
    if isinstance(value, str):
        reason = refusal(value)
        if reason:
            yield f"{path}: {reason}" if path else reason
        return
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, LISTS) else ()
    for key, item in items:
        if isinstance(key, str) and refusal(key):
            yield f"{path or 'the recipe'}: a key {refusal(key)}"
        elif isinstance(item, NESTED) or (isinstance(item, str) and (":" in item or "%" in item)):
            yield from problems(item, f"{path}.{key}" if path else str(key))


def without_credentials(text: str) -> str:
    """Return a message in which no URI shows what it may not hold."""
    shown: list[str] = []
    begin, last_at, behind = 0, text.rfind("@"), _behind_last_at(text)
    while match := IN_TEXT.search(text, begin):
        word = match[0].rstrip(f"{MARKS}{QUOTES}")
        if not ({"@", "?"} & set(word)) or refusal(word) is None:  # else a quote is part of a key
            word = re.split(f"[{QUOTES}]", word)[0].rstrip(MARKS)
        end = match.start() + len(word)
        uri = word if "://" in word else f"{match[1]}://{word[len(match[1]) + 1 :].lstrip('/')}"
        if refusal(uri):
            word = uri.partition("?")[0]
            if word == uri or refusal(word):
                word, end = f"{match[1]}://{HIDDEN}", behind if last_at >= end else end
        shown += [text[begin : match.start()], word]
        begin = end
    return "".join([*shown, text[begin:]])


def _behind_last_at(text: str) -> int:
    """Return the end of the word that holds the last @, 0 without one; a key may hold spaces and quotes."""
    match = re.compile(r"[^\s'\"]*").match(text, text.rfind("@") + 1)
    return match.end() if match and "@" in text else 0


def public(value: object) -> object:
    """Return settings as others may read them: files and folders by their own names, URIs without a query."""
    if isinstance(value, Mapping):
        return {
            key: [_name_of(each) for each in inner] if key == "paths" else public(inner) for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [public(inner) for inner in value]
    if isinstance(value, str) and (value.startswith((*LOCAL, "file:", "$")) or "://" in value):
        return _name_of(value)
    return value


def _name_of(location: str) -> str:
    """Return the last part of a path, or a URI without credentials and query."""
    scheme, mark, rest = location.partition("?")[0].partition("://")
    if mark and scheme.lower() != "file":
        return f"{scheme}://{rest.rpartition('@')[2]}"
    return location.rstrip("/").rpartition("/")[2] or location
