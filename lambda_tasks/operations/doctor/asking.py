"""Say why AWS did not answer a request, and what to do about it: the remedy depends on the error."""

from __future__ import annotations

import re
from typing import Final

from botocore import exceptions

#: Parts of the error codes of AWS, and the remedy for each group. The first match counts.
_BY_CODE: Final = (
    (
        (
            "InvalidClientTokenId|UnrecognizedClient|ExpiredToken|RequestExpired|InvalidAccessKey|InvalidSignature"
            "|SignatureDoesNotMatch|IncompleteSignature|MissingAuthentication"
        ),
        (
            "Correct the AWS credentials of this process, or renew them. "
            "`aws sts get-caller-identity` shows whether they are valid."
        ),
    ),
    (
        "AccessDenied|Unauthorized|NotAuthorized|AuthorizationError|Forbidden",
        "Grant {permission} to the user or role of this process.",
    ),
    (
        (
            "Throttl|TooManyRequests|RequestLimitExceeded|OverLimit|ServiceUnavailable|InternalError|InternalFailure"
            "|ServiceException"
        ),
        "AWS is overloaded or has a problem of its own. Run the command again later.",
    ),
    (
        "NonExistent|DoesNotExist|NotFound",
        (
            "Make sure that it exists in this account and region, and that the user or role of this process has the "
            "permission {permission}."
        ),
    ),
)
#: Types of botocore's errors, and the remedy for each group.
_BY_TYPE: Final = (
    (
        (
            exceptions.NoCredentialsError,
            exceptions.PartialCredentialsError,
            exceptions.CredentialRetrievalError,
            exceptions.ProfileNotFound,
            exceptions.SSOError,
            exceptions.TokenRetrievalError,
        ),
        "Give this process valid AWS credentials, such as AWS_PROFILE, or a role. Emulators such as moto accept any.",
    ),
    (
        (exceptions.HTTPClientError, exceptions.ConnectionError),
        (
            "Nothing answers at this address. Check the network, the proxy, the URL of the queue, and AWS_ENDPOINT_URL "
            "and AWS_ENDPOINT_URL_SQS, if they are set."
        ),
    ),
    ((exceptions.NoRegionError,), "Set AWS_DEFAULT_REGION."),
    (
        (exceptions.UnknownClientMethodError, exceptions.ParamValidationError),
        "Upgrade boto3: the installed version does not know this request.",
    ),
)
_OTHERWISE: Final = "The request needs the permission {permission}."


def remedy_for(error: Exception, permission: str) -> str:
    """Return the remedy for a request that failed with `error`, and that needs `permission`."""
    if isinstance(error, exceptions.ClientError):
        code = str(error.response.get("Error", {}).get("Code", ""))
        remedy = next((remedy for codes, remedy in _BY_CODE if re.search(codes, code)), _OTHERWISE)
    else:
        remedy = next((remedy for types, remedy in _BY_TYPE if isinstance(error, types)), _OTHERWISE)
    return remedy.format(permission=permission)
