"""Background tasks for Django on AWS Lambda and SQS, recorded in your own database."""

__version__ = "1.0.0"
