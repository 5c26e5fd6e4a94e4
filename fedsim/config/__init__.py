"""A study's configuration: its sections, one experiment, the YAML file. Imports nothing heavy."""

from fedsim.config.base import Section as Section
from fedsim.config.experiment import Experiment as Experiment
from fedsim.config.method import MethodConfig as MethodConfig
from fedsim.config.sections import (
    CacheConfig as CacheConfig,
)
from fedsim.config.sections import (
    DataConfig as DataConfig,
)
from fedsim.config.sections import (
    EngineConfig as EngineConfig,
)
from fedsim.config.sections import (
    EvaluationConfig as EvaluationConfig,
)
from fedsim.config.sections import (
    FailuresConfig as FailuresConfig,
)
from fedsim.config.sections import (
    ModelsConfig as ModelsConfig,
)
from fedsim.config.sections import (
    NoiseConfig as NoiseConfig,
)
from fedsim.config.sections import (
    PartitionConfig as PartitionConfig,
)
from fedsim.config.sections import (
    ReportConfig as ReportConfig,
)
from fedsim.config.sections import (
    ResourcesConfig as ResourcesConfig,
)
from fedsim.config.sections import (
    ServerConfig as ServerConfig,
)
from fedsim.config.sections import (
    SyntheticConfig as SyntheticConfig,
)
from fedsim.config.sections import (
    TrainConfig as TrainConfig,
)
from fedsim.config.sections import (
    WireConfig as WireConfig,
)
