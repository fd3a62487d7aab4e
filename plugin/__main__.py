"""The component provider: gives the component Application to programs in any of Pulumi's languages."""

from esteira.application import Application
from pulumi.provider.experimental import component_provider_host

if __name__ == "__main__":
    # Without one, Pulumi takes the group of the address that the plugin comes from: another in each copy.
    component_provider_host(name="esteira", namespace="esteira", components=[Application])
