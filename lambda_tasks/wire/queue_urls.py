"""Read the URLs of queues: what is wrong with one, its AWS region, and the address that its requests go to."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import SplitResult, urlsplit

if TYPE_CHECKING:
    from botocore.config import Config

#: For each AWS partition, the domain of its endpoints, and that of its dual-stack endpoints.
_DOMAINS: Final = {
    "aws": ("amazonaws.com", "api.aws"),
    "aws-us-gov": ("amazonaws.com", "api.aws"),
    "aws-cn": ("amazonaws.com.cn", "api.amazonwebservices.com.cn"),
    "aws-eusc": ("amazonaws.eu", "api.amazonwebservices.eu"),
    "aws-iso": ("c2s.ic.gov", "api.aws.ic.gov"),
    "aws-iso-b": ("sc2s.sgov.gov", "api.aws.scloud"),
    "aws-iso-e": ("cloud.adc-e.uk", "api.cloud-aws.adc-e.uk"),
    "aws-iso-f": ("csp.hci.ic.gov", "api.aws.hci.ic.gov"),
}
#: Matches a region of any partition, such as us-east-1, us-gov-west-1 and eusc-de-east-1.
_REGION: Final = r"(?P<region>[a-z]{2,}(?:-[a-z]+)+-[0-9]{1,2})"


def _one_of(domains: Iterable[str]) -> str:
    return f"(?:{'|'.join(map(re.escape, sorted(set(domains))))})"


_PLAIN: Final = _one_of(plain for plain, _ in _DOMAINS.values())
_DUAL: Final = _one_of(dual for _, dual in _DOMAINS.values())
#: Matches the hosts for which botocore itself knows the address: the usual form and the legacy forms.
_USUAL_HOST: Final = re.compile(rf"(?:sqs\.{_REGION}|(?P<legacy>[a-z0-9-]+)\.queue|queue)\.{_PLAIN}")
#: Matches the other hosts on AWS: FIPS, dual stack, and VPC interface endpoints.
_SPECIAL_HOST: Final = re.compile(
    rf"sqs\.{_REGION}\.{_DUAL}"
    rf"|sqs-fips\.{_REGION.replace('<region>', '<fips>')}\.(?:{_PLAIN}|{_DUAL})"
    rf"|vpce-[a-z0-9-]+\.sqs\.{_REGION.replace('<region>', '<vpc>')}\.vpce\.{_PLAIN}"
)
#: Matches the region in other hosts, such as LocalStack's and those of partitions that are missing above.
_REGION_IN_HOST: Final = re.compile(
    rf"(?:^|\.)(?:sqs(?:-fips)?\.{_REGION}|{_REGION.replace('<region>', '<queue>')}\.queue)\."
)
_REGION_IN_PATH: Final = re.compile(rf"/queue/{_REGION}/")
#: The region of queue.amazonaws.com.
_LEGACY_REGION: Final = "us-east-1"

_ARN: Final = re.compile(r"arn:(?P<partition>[a-z-]+):sqs:(?P<region>[a-z0-9-]+):(?P<account>\d+):(?P<name>[\w.-]+)")
_PATH_ON_AWS: Final = re.compile(r"/\d+/[A-Za-z0-9_-]{1,80}(\.fifo)?/?")
#: The length of the longest value that an error shows.
_MOST_SHOWN: Final = 200


@dataclass(frozen=True, slots=True)
class Server:
    """The server of a queue, as its URL describes it."""

    #: The AWS region for which requests are signed; None if the URL contains none.
    region: str | None = None
    #: The scheme, host and port that requests go to; None if it is botocore's address for the region.
    endpoint: str | None = None
    #: Whether the server belongs to AWS.
    is_aws: bool = False

    def endpoint_of(self, service: str) -> str | None:
        """Return the address of another service on this server; an emulator of AWS serves all at one address."""
        return self.endpoint if service == "sqs" or not self.is_aws else None


@lru_cache(maxsize=256)
def server_of(url: str) -> Server:
    """Return the server of the queue with this URL. A URL that `problem_of` rejects has an unknown server."""
    parts = _split(url)
    if parts is None:
        return Server()
    host = parts.hostname or ""
    if match := _USUAL_HOST.fullmatch(host):
        return Server(match["region"] or match["legacy"] or _LEGACY_REGION, is_aws=True)
    endpoint = f"{parts.scheme}://{parts.netloc}"
    if match := _SPECIAL_HOST.fullmatch(host):
        return Server(match["region"] or match["fips"] or match["vpc"], endpoint, is_aws=True)
    if match := _REGION_IN_HOST.search(host):
        return Server(match["region"] or match["queue"], endpoint)
    match = _REGION_IN_PATH.match(parts.path)
    return Server(match["region"] if match else None, endpoint)


def region_in(url: str) -> str | None:
    """Return the AWS region in the URL of a queue; None if the URL contains none."""
    return server_of(url).region


def looks_like_aws(url: str) -> bool:
    """Return whether the host looks like one of AWS, but belongs to no known partition."""
    parts, server = _split(url), server_of(url)
    if parts is None or server.is_aws or (host := parts.hostname or "").endswith((".localstack.cloud", ".localhost")):
        return False
    return "amazonaws" in host or bool(_REGION_IN_HOST.match(host))


def client_options(
    make: Callable[..., Any], service: str, server: Server, *, config: Config, endpoint_url: str | None = None
) -> dict[str, Any]:
    """Return the options for `make`, the function `client` of boto3 or of a session, with which it reaches `server`.

    An explicit address has precedence: `endpoint_url`, or one in the environment or the AWS configuration, such as
    AWS_ENDPOINT_URL_SQS.
    """
    options = {"region_name": server.region, "endpoint_url": endpoint_url, "config": config}
    own = server.endpoint_of(service)
    if endpoint_url is not None or own is None:
        return options
    from botocore.config import Config

    # botocore rejects an address of our own together with AWS_USE_FIPS_ENDPOINT or AWS_USE_DUALSTACK_ENDPOINT.
    options["config"] = config.merge(Config(use_fips_endpoint=False, use_dualstack_endpoint=False))
    chosen = urlsplit(make(service, **options).meta.endpoint_url).hostname or ""
    is_default = re.fullmatch(rf"(?:{service}\.[a-z0-9-]+|(?:[a-z0-9-]+\.)?queue)\.{_PLAIN}", chosen)
    return {**options, "endpoint_url": own} if is_default else options


def url_of(arn: str, urls: Iterable[str]) -> str | None:
    """Return the one of `urls` that belongs to the queue with this ARN; None if none does.

    A URL without a region may belong to a queue of any region.
    """
    match = _ARN.fullmatch(arn)
    if match is None:
        return None
    path = f"/{match['account']}/{match['name']}"
    candidates = [url for url in urls if url.rstrip("/").endswith(path)]
    exact = (url for url in candidates if region_in(url) == match["region"])
    return next(exact, None) or next((url for url in candidates if region_in(url) is None), None)


@lru_cache(maxsize=256)
def problem_of(url: str) -> str | None:
    """Return why no message can be sent to `url`, with the remedy; None if one can."""
    if "://" not in url:
        return _problem_without_scheme(url)
    if any(character.isspace() or not character.isprintable() for character in url):
        return f"must be a URL without spaces and line breaks, not {_shown(url)}. Remove them."
    if url.partition("://")[0].lower() not in ("http", "https"):
        return f"must be a URL that begins with https:// or http://, not {_shown(url)}. {_REMEDY}"
    parts = _split(url)
    if parts is None:
        return f"must be a URL with a valid host and port, not {_shown(url)}. {_REMEDY}"
    if "@" in parts.netloc:
        return "must be a URL without a user name and password. Give boto3 its credentials in another way."
    if parts.query or parts.fragment:
        return f"must be a URL that ends with the name of the queue, not {_shown(url)}. Remove the part after the name."
    name = parts.path.rstrip("/").rpartition("/")[2]
    if not name or (server_of(url).is_aws and not _PATH_ON_AWS.fullmatch(parts.path)):
        return f"must be a URL that ends with the account and the name of the queue, not {_shown(url)}. {_REMEDY}"
    if name.endswith(".fifo"):
        return (
            f"must be the URL of a standard queue, not that of the FIFO queue {_shown(url)}, which rejects messages "
            "without a message group and messages with an individual delay. Create a standard queue, and use its URL."
        )
    return None


_REMEDY: Final = "`aws sqs get-queue-url --queue-name NAME` prints the URL of a queue."


def _problem_without_scheme(url: str) -> str:
    if url.startswith("arn:"):
        match = _ARN.fullmatch(url)
        domain = _DOMAINS.get(match["partition"]) if match else None
        if match is None or domain is None:
            return f"must be the URL of a queue, not the ARN {_shown(url)}. {_REMEDY}"
        own = f"https://sqs.{match['region']}.{domain[0]}/{match['account']}/{match['name']}"
        return f"must be the URL of a queue, not its ARN {_shown(url)}. Use {own}."
    if "/" in url.strip("/"):
        scheme = "http" if re.match(r"(localhost|127\.|\[?::1)", url) else "https"
        return f"must be a URL with its scheme, not {_shown(url)}. Write {_shown(f'{scheme}://{url}'.strip())}."
    return (
        f"must be the URL of a queue, not its name {_shown(url)}. "
        f"{_REMEDY.replace('NAME', url) if re.fullmatch(r'[A-Za-z0-9_-]{1,80}', url) else _REMEDY}"
    )


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises an error for an invalid port
    except ValueError:
        return None
    return parts if parts.scheme in ("http", "https") and parts.hostname else None


def _shown(url: str) -> str:
    if "@" in url:
        return "a string with @ (not shown in case it contains a password)"
    return repr(url if len(url) <= _MOST_SHOWN else url[:_MOST_SHOWN] + "…")
