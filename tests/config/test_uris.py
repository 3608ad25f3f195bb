"""URIs in settings, on command lines and in messages: credentials are refused in any spelling and never shown."""

import pickle
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from e2ray.config.base import SettingsError
from e2ray.config.data import DataSettings
from e2ray.config.uris import is_uri, problems, public, refusal, without_credentials
from e2ray.data.folder import Folder

SECRET = "wJalrXUtnFEMI"  # of letters alone, so that nothing but its place tells it from a name
HARMLESS = [
    "s3://corpus/x",
    "s3://my_bucket.a-b/folder@v2/x%20y",
    "s3://corpus/x?endpoint_override=127.0.0.1%3A9000&scheme=http&region=us-east-1",
    "s3://corpus/x?endpoint_override=http://host:9000/path&scheme=http",
    "s3://corpus?allow_bucket_creation=true&tls_verify_certificates=0&smart_defaults=auto",
    "gs://anonymous@corpus/x",
    "gcs://corpus/x?project_id=some-project-1&retry_limit_seconds=3",
    "abfss://container@account.dfs.core.windows.net/x",
    "abfs://account@host.example:10000/container/x?enable_tls=false&credential_kind=environment",
    "hdfs://user@namenode:8020/user/me@work/x?user=me@REALM&replication=2&kerb_ticket=/tmp/krb5cc_0",
    "hdfs:///corpus",
    "hf://datasets/user/name@main/x",
    "file:///tmp/a",
    "http://127.0.0.1:8265",
    "http://[::1]:99/x",
    "what://is/nothing",
]
NO_URIS = ["/data/a", "~/a", "./a://b@c:d", "/data/a://b:c@d", "org/model", "a", "", "leval:coursera", "C:", "x: y@z?"]
IN_FRONT = [
    f"s3://KEY:{SECRET}@corpus/x",
    f"s3://{SECRET}@corpus/x",
    f"s3://KEY:{SECRET}/with/a@corpus/x",
    f"s3://KEY:12/{SECRET}@corpus/x",
    f"s3://KEY:{SECRET}?more@corpus/x",
    f"s3://KEY:12?{SECRET}@corpus/x",
    f"s3://KEY:{SECRET} more@corpus/x",
    f"s3://KEY:'{SECRET}@corpus/x",
    f"s3://KEY:{SECRET}#more@corpus/x",
    f"S3://KEY:{SECRET}@corpus/x",
    f" s3://KEY:{SECRET}@corpus/x",
    f"s3://KEY%3A{SECRET}%40corpus/x",
    f"s3://KEY%253A{SECRET}%2540corpus/x",
    f"s3:/KEY:{SECRET}@corpus/x",
    f"s3:KEY:{SECRET}@corpus/x",
    f"s3a://KEY:{SECRET}@corpus/x",
    f"s3://corpus/s3://KEY:{SECRET}@corpus/x",
    f"s3://corpus;secret_key={SECRET}/x",
    f"fsspec+s3://KEY:{SECRET}@corpus/x",
    f"gs://{SECRET}@corpus/x",
    f"abfss://container:{SECRET}@account.dfs.core.windows.net/x",
    f"abfss://:{SECRET}@account.dfs.core.windows.net/x",
    f"abfs://account:12/{SECRET}==@host/x",
    f"hf://{SECRET}@datasets/user/name",
    f"hdfs://user:{SECRET}@namenode/x",
    f"https://user:{SECRET}@host/x",
]
PARAMETERS = [
    f"s3://corpus/x?access_key=KEY&secret_key={SECRET}",
    f"s3://corpus/x?region=us-east-1&SECRET_KEY={SECRET}",
    f"s3://corpus/x?secret%5Fkey={SECRET}",
    f"s3://corpus/x?session_token={SECRET}",
    f"s3://corpus/x?anonymous={SECRET}",
    f"s3://corpus/x?sse_customer_key={SECRET}",
    f"s3://corpus/x?Region={SECRET}",
    f"gs://corpus/x?access_token={SECRET}",
    f"abfss://container@account.dfs.core.windows.net/x?account_key={SECRET}",
    f"abfss://container@account.dfs.core.windows.net/x?sv=2024&sig={SECRET}",
    f"abfss://container@account.dfs.core.windows.net/x?client_id=a&client_secret={SECRET}",
    f"hdfs://namenode/x?fs.azure.account.key={SECRET}",
    f"hf://datasets/user/name?token={SECRET}",
    f"https://host/x?X-Amz-Signature={SECRET}",
]
VALUES = [
    f"s3://corpus/x?{SECRET}",
    f"s3://corpus/x?{SECRET * 3}==",
    f"s3://corpus/x?endpoint_override=http://user:{SECRET}@host",
    f"s3://corpus/x?endpoint_override=user%3A{SECRET}%40host",
    f"s3://corpus/x?region=us-east-1;secret_key={SECRET}",
    f"s3://corpus/x?region=us-east-1?secret_key={SECRET}",
    f"s3://corpus/x?allow_bucket_creation={SECRET}",
    f"gs://corpus/x?retry_limit_seconds={SECRET}",
    f"s3://corpus/x#{SECRET}",
]
ALL = IN_FRONT + PARAMETERS + VALUES


def corpus(shards):
    return {"corpus": [{"kind": "python_stdlib"}], "window": 8, "shards": shards}


@pytest.mark.parametrize("place", HARMLESS)
def test_a_place_without_credentials_is_taken_and_shown(place):
    assert is_uri(place) and refusal(place) is None
    assert DataSettings.model_validate(corpus(place)).shards == place
    folder = place.partition("?")[0]
    for message in (f"{place}: not found", f"no {place!r} ({place})", f"{folder}/a.arrow: damaged shard, run it again"):
        assert without_credentials(message) == message


@pytest.mark.parametrize("text", NO_URIS)
def test_what_is_no_uri_is_none(text):
    assert not is_uri(text) and refusal(text) is None


@pytest.mark.parametrize("place", ALL)
def test_credentials_are_refused_in_any_spelling_without_showing_them(place):
    reason = refusal(place)
    assert "credentials belong into the environment of all nodes" in reason
    assert SECRET not in reason and "\n" not in reason and len(reason) < 320
    with pytest.raises(SettingsError) as caught:
        Folder(place)
    assert SECRET not in str(caught.value) and reason in str(caught.value)
    with pytest.raises(ValidationError) as refused:
        DataSettings.model_validate(corpus(place))
    assert SECRET not in str(refused.value) and f"shards: {reason}" in str(refused.value)


@pytest.mark.parametrize("place", PARAMETERS)
def test_a_parameter_that_is_not_known_to_be_harmless_is_named_without_its_value(place):
    name = place.rpartition("=")[0].rpartition("&")[2].rpartition("?")[2].replace("%5F", "_")
    known = "has the parameter 'access_key'" if name == "secret_key" and "access" in place else f"'{name}'"
    assert known in refusal(place) or "sv" in place


@pytest.mark.parametrize(
    ("scheme", "names"),
    [
        ("s3", "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN"),
        ("s3a", "AWS_ACCESS_KEY_ID"),
        ("gs", "GOOGLE_APPLICATION_CREDENTIALS"),
        ("abfss", "AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET"),
        ("hf", "HF_TOKEN"),
    ],
)
def test_the_variables_of_each_store_are_named(scheme, names):
    assert f"({names}" in refusal(f"{scheme}://a:b@c/x")


@pytest.mark.parametrize("place", ALL)
@pytest.mark.parametrize("form", ["{!r}", "cannot parse '{}' (as {})", "got {}, wanted a list", '"{}": no file'])
def test_no_message_shows_credentials(place, form):
    message = form.format(place, place)
    shown = without_credentials(message)
    assert SECRET not in shown and "KEY" not in shown.replace("SECRET_KEY", "")
    assert shown.startswith(message.partition(":")[0][:5]) and without_credentials(shown) == shown
    error = SettingsError(message)
    assert str(pickle.loads(pickle.dumps(error))) == str(error) and SECRET not in str(error)


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"data": {"shards": "{}"}}, "data.shards: "),
        ({"data": {"corpus": [{"kind": "text", "paths": ["/a", "{}"]}]}}, "data.corpus.0.paths.1: "),
        ({"model": {"path": "{}"}}, "model.path: "),
        ({"unknown": ("{}",)}, "unknown.0: "),
        ({"data": {"{}": 1}}, "data: a key "),
        ({"{}": 1}, "the recipe: a key "),
        ("{}", ""),
    ],
)
@pytest.mark.parametrize("place", [IN_FRONT[0], PARAMETERS[0], VALUES[0]])
def test_every_text_of_a_recipe_is_looked_at(value, path, place):
    def filled(part):
        match part:
            case str():
                return part.replace("{}", place)
            case dict():
                return {filled(key): filled(item) for key, item in part.items()}
            case list() | tuple():
                return type(part)(filled(item) for item in part)
        return part

    assert list(problems(filled(value))) == [f"{path}{refusal(place)}"]
    assert list(problems(value)) == []


@given(st.text("ab:/@?=&%3A40.#_-", max_size=40))
def test_what_a_message_shows_of_a_uri_is_a_place(text):
    shown = without_credentials(f"got s3://{text}").removeprefix("got ")
    assert without_credentials(shown) == shown
    assert refusal(shown.rstrip(".,:;)]}")) is None


@pytest.mark.parametrize(
    "text", ["a" * 200_000, "a:/" * 60_000, "s3://b/" + "%25" * 60_000, "s3://a@" * 20_000, "http://h/x#1 " * 500_000]
)
def test_long_texts_cost_their_length(text):
    """At the square of it the last one would take an hour, and the time that a test has is ten minutes."""
    refusal(text)
    without_credentials(text)


@pytest.mark.parametrize(
    "text",
    [
        "s3 ://AK:S3CR3T@b/x",
        "\u00e9://AK:S3CR3T@b/x",
        "://AK:S3CR3T@b/x",
        "\uff53\uff13://AK:S3CR3T@b",
        "/s3://AK:S3CR3T@b",
        "~/s3://AK:S3CR3T@b",
        "s3:///AK:S3CR3T@bucket/x",
        "gs:///AK:S3CR3T@bucket/x",
        "s3://bucket/AK:S3CR3T@x",
        "s3://bucket/x&secret_key=S3CR3T",
        "s3://bucket/x;session_token=S3CR3T",
        "s3://bucket/x%3Fsecret_key%3DS3CR3T",
        "dbfs:/x?token=S3CR3T",
        "wasbs:c:S3CR3T@x",
        "s3%3A%2F%2FAK%3AS3CR3T%40b",
        "s3://b/x?secret_key='S3CR3T'",
        "s3://b/x;apikey=S3CR3T/a",
        "s3://b/x;accesskey=S3CR3T",
        "s3://b/x;clientSecret=S3CR3T",
        "s3://b/x;AWSAccessKeyId=S3CR3T",
        "s3://b/AKIAIOSFODNN7:3S3CR3T@store/x",
        "s3://b/12:30S3CR3T@store/x",
    ],
)
def test_credentials_in_odd_spellings_are_refused_and_hidden(text):
    reason = refusal(text)
    assert reason and "S3CR3T" not in reason
    if re.match(r"[a-z0-9]+:", text):  # nobody shows the others, which are refused where they are read
        assert "S3CR3T" not in without_credentials(f"data.shards: {text} is no place")


@pytest.mark.parametrize(
    "text",
    [
        "gs://bucket/x?retry_limit_seconds=5.5",
        "s3://bucket/key=1/date=2024-01-01/x.parquet",
        "s3://bucket/a&b/c;d",
        "/data/100%25/x",
        "/data/a:b/c@d",
        "/data/token=3/x",
        "/data/run:1/part?key=3.jsonl",
        "/data/ts=12:00:00/?_passkey=1.jsonl",
        "/data/a:b;tokens=5/*.txt",
        "s3://bucket/2024-01-01T00:00:00@v1/a.jsonl",
        "s3://bucket/at-12:30@v1/a.jsonl",
        "s3://b/a;author=tolkien/x.parquet",
        "C4:en",
        "hdfs://user@name-node:8020/x",
    ],
)
def test_uris_that_look_odd_and_hold_no_credentials_pass(text):
    assert refusal(text) is None


def test_settings_for_others_name_things_and_not_where_they_lie():
    told = public(
        {
            "model": {"path": "/home/jane/Llama-3/"},
            "data": {
                "corpus": [{"paths": ["texts/*.txt", "/data/books/**"]}],
                "shards": "file:///tmp/runs/shards/1d4d",
            },
            "place": "s3://bucket/x?region=eu",
            "lr": 0.1,
        }
    )
    assert told["model"] == {"path": "Llama-3"} and told["data"]["shards"] == "1d4d"
    assert told["data"]["corpus"] == [{"paths": ["*.txt", "**"]}] and told["place"] == "s3://bucket/x"
    assert told["lr"] == 0.1
