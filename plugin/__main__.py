"""The component provider: gives the component Application to programs in any of Pulumi's languages."""

from esteira.application import Application
from pulumi.provider.experimental import component_provider_host

if __name__ == "__main__":
    component_provider_host(name="esteira", components=[Application])
