"""Where the code of the functions is, as each format can use it."""

from __future__ import annotations

import re
from typing import Final, Literal, cast

from lambda_tasks.operations.infrastructure.described import Code, Format

_S3: Final = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/(?P<key>.+)")
_IMAGE: Final = re.compile(
    r"\d{12}\.dkr\.ecr(?:-fips)?\.(?P<region>[a-z0-9-]+)\.[a-z0-9.]+/[a-z0-9][a-z0-9._/-]*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9._-]{0,127}|@sha256:[0-9a-f]{64})"
)
_EXAMPLES: Final[dict[Format, str]] = {
    "cloudformation": "s3://BUCKET/KEY.zip, or an image in ECR with its tag or digest",
    "sam": "a directory, s3://BUCKET/KEY.zip, or an image in ECR with its tag or digest",
    "terraform": "the path of a .zip file, s3://BUCKET/KEY.zip, or an image in ECR with its tag or digest",
}


def read_code(location: str | None, package: str | None, format: Format, region: str | None) -> Code:
    """Return the code at `location`, or the code that a parameter of the template names.

    Raise ValueError for a location that the format cannot use, and for one that contradicts `package` ("zip" or
    "image").
    """
    code = _located(location, package, format, region)
    if package is not None and code.package != package:
        raise ValueError(
            f"--code {location} must be {'an image' if package == 'image' else 'a zip file'} because of --package "
            f"{package}. Leave --package out, or correct --code."
        )
    return code


def _located(location: str | None, package: str | None, format: Format, region: str | None) -> Code:
    if location is None:
        # `sam build` builds a directory, so SAM needs no parameter.
        path = "." if format == "sam" else None
        return Code(cast('Literal["zip", "image"]', package or "zip"), path=path)
    if match := _S3.fullmatch(location):
        return Code("zip", bucket=match["bucket"], key=match["key"])
    if match := _IMAGE.fullmatch(location):
        if region is not None and match["region"] != region:
            raise ValueError(
                f"--code must be an image in the region of the functions, {region}, not {location!r}. Push it there."
            )
        return Code("image", image=location)
    is_path = "://" not in location and ".dkr.ecr" not in location
    if is_path and format == "sam":
        return Code(cast('Literal["zip", "image"]', package or "zip"), path=location)
    if is_path and format == "terraform" and location.endswith(".zip"):
        return Code("zip", path=location)
    raise ValueError(
        f"--code must be {_EXAMPLES[format]} with --format {format}, not {location!r}. Correct it, or leave it out to "
        "name the code when you deploy."
    )
