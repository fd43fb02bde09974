"""Stand-ins for the providers that run as real servers, faults included. Used by the demo and the tests."""

from smi_workflow.sandbox.sandbox import Sandbox, SandboxConfig

__all__ = ["Sandbox", "SandboxConfig"]
