"""Tools for operators: system checks, the doctor, and the recovery of lost tasks."""
