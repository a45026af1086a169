"""Run a function on Lambda Managed Instances: `python -m lambda_tasks.instances shop.handler.handler`.

An environment there has several processes, one for each concurrent invocation. Lambda's own runtime client forks them
before it imports the handler, so that each one sets Django up by itself, and does not replace one that ends. This
entry point sets Django up once, forks the processes then, and replaces those that end.
"""
