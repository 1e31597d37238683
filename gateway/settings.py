"""How a command line, a .properties file and the environment become options.

Precedence, lowest first: default, environment (NAMESRV_ADDR), file (`-c`), command line. Unknown keys never stop
a start, because official files carry keys of plug-ins and of other versions; a misspelt one is reported with the
key that was probably meant. A known key with a bad value does stop it, before anything is written to disk.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

from gateway.addresses import ip_of, parse_addresses
from gateway.config import BrokerOptions, ConfigError, NamesrvOptions
from protocol.options import OptionError, Options
from store.options import BrokerRole, StoreOptions

MAX_FILE_BYTES = 1 << 20
_ENVIRONMENT = "environment"
_COMMAND_LINE = "command line"
AnyOptions = TypeVar("AnyOptions", bound=Options)


class Remark(NamedTuple):
    """Something about the configuration that its author should know and that does not stop the start."""

    event: str
    facts: dict[str, str]

    def __str__(self) -> str:
        return " ".join([self.event, *(f"{name}={text}" for name, text in self.facts.items())])


class BrokerConfiguration(NamedTuple):
    """All that a broker is started with."""

    options: BrokerOptions
    store_options: StoreOptions
    remarks: list[Remark]


class NamesrvConfiguration(NamedTuple):
    """All that a name server is started with."""

    options: NamesrvOptions
    remarks: list[Remark]


def load_broker(
    file: str | None = None,
    overrides: Mapping[str, str] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    defaults: Mapping[str, str] | None = None,
) -> BrokerConfiguration:
    """Options of a broker; `defaults` are those of the command. Raises ConfigError."""
    settings = Settings(file, overrides, environ, defaults)
    options = settings.build(BrokerOptions)
    store_options = settings.build(StoreOptions)
    options.without_effect, remarks = settings.leftovers(BrokerOptions, StoreOptions)
    remarks += _settle_identity(options, store_options, settings)
    _settle_ports(options, store_options, settings)
    return BrokerConfiguration(options, store_options, remarks)


def load_namesrv(
    file: str | None = None,
    overrides: Mapping[str, str] | None = None,
    *,
    defaults: Mapping[str, str] | None = None,
) -> NamesrvConfiguration:
    """Options of a name server; `defaults` are those of the command. Raises ConfigError."""
    settings = Settings(file, overrides, None, defaults)
    options = settings.build(NamesrvOptions)
    options.without_effect, remarks = settings.leftovers(NamesrvOptions)
    return NamesrvConfiguration(options, remarks)


NAMESRV_ALIASES = {"namesrvPort": "listenPort", "namesrvMetricsPort": "metricsPort"}
"""The name server's keys whose own names mean the broker when both run in one process."""


def load_both(
    file: str | None = None, overrides: Mapping[str, str] | None = None
) -> tuple[NamesrvConfiguration, BrokerConfiguration]:
    """Options of a name server and a broker in one process, with data under ./data. Raises ConfigError.

    One file and one list of keys serve both. All remarks are in the broker's configuration. NAMESRV_ADDR does not
    count here: the name server is the own one, and namesrvAddr names others that the broker registers with too.
    """
    data = Path("data").absolute()
    defaults = {
        "brokerName": "broker-a",
        "storePathRootDir": str(data / "store"),
        "kvConfigPath": str(data / "namesrv" / "kvConfig.json"),
        "configStorePath": str(data / "namesrv" / "namesrv.properties"),
    }
    settings = Settings(file, overrides, None, defaults)
    options = settings.build(BrokerOptions)
    store_options = settings.build(StoreOptions)
    namesrv_options = settings.renamed(NAMESRV_ALIASES).build(NamesrvOptions)
    idle, remarks = settings.leftovers(BrokerOptions, StoreOptions, NamesrvOptions, aliases=NAMESRV_ALIASES)
    options.without_effect = namesrv_options.without_effect = idle
    remarks += _settle_identity(options, store_options, settings)
    _settle_ports(options, store_options, settings)
    return NamesrvConfiguration(namesrv_options, []), BrokerConfiguration(options, store_options, remarks)


class Settings:
    """All texts that were given, by key, each with the place that the winning one came from."""

    def __init__(
        self,
        file: str | None,
        overrides: Mapping[str, str] | None = None,
        environ: Mapping[str, str] | None = None,
        defaults: Mapping[str, str] | None = None,
    ) -> None:
        self.file = file
        self.texts: dict[str, str] = {}
        self._origins: dict[str, str] = {}
        self._aliases: dict[str, str] = {}
        self._add(defaults or {}, "default")
        if environ and environ.get("NAMESRV_ADDR"):
            self._add({"namesrvAddr": environ["NAMESRV_ADDR"]}, _ENVIRONMENT)
        if file is not None:
            self._add(read_properties(file), file)
        self._add(overrides or {}, _COMMAND_LINE)

    def _add(self, texts: Mapping[str, str], origin: str) -> None:
        self.texts.update(texts)
        self._origins.update(dict.fromkeys(texts, origin))

    def error(self, problem: OptionError) -> ConfigError:
        """The same problem with the place where the value stands."""
        origin = self._origins.get(problem.key, "default")
        alias = self._aliases.get(problem.key, problem.key)
        return ConfigError(f"{origin}: {OptionError(alias, problem.value, problem.allowed)}")

    def renamed(self, aliases: Mapping[str, str]) -> "Settings":
        """These settings as seen by a server whose keys were given under other names: `{given: its own}`."""
        other = Settings(None)
        other.file = self.file
        kept = {key: text for key, text in self.texts.items() if key not in aliases.values()}
        for given, own in aliases.items():
            if given in kept:
                kept[own] = kept.pop(given)
                other._aliases[own] = given
        for key, text in kept.items():
            other._add({key: text}, self._origins[other._aliases.get(key, key)])
        return other

    def build(self, cls: type[AnyOptions]) -> AnyOptions:
        """The options of one class. Raises ConfigError for a value that its key does not take."""
        try:
            return cls.from_properties(self.texts, self.file or "")
        except OptionError as problem:
            raise self.error(problem) from None

    def leftovers(self, *classes: type[Options], aliases: Iterable[str] = ()) -> tuple[dict[str, str], list[Remark]]:
        """Official keys that were given and have no effect, and remarks on them and on unknown keys."""
        used = {key for cls in classes for key in cls.declared()}.union(aliases)
        rest = self.texts.keys() - used
        if not rest:
            return {}, []
        from gateway import officialkeys

        official = officialkeys.BROKER.keys() | officialkeys.SERVER.keys() | officialkeys.SINCE_5
        idle = {key: text for key, text in self.texts.items() if key in rest and key in official}
        remarks = [
            Remark("unknown_config_key", {"key": key, "given_in": self._origins[key]} | _meant(key, used | official))
            for key in self.texts
            if key in rest and key not in official
        ]
        if idle:
            remarks.append(Remark("config_keys_without_effect", {"keys": ", ".join(sorted(idle))}))
        return idle, remarks


def _meant(key: str, known: set[str]) -> dict[str, str]:
    """The official key nearest to a misspelt one, if there is one; case does not count."""
    import difflib

    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(key.lower(), by_lower, n=1, cutoff=0.75)
    return {"did_you_mean": by_lower[near[0]]} if near else {}


def read_properties(file: str) -> dict[str, str]:
    """The entries of a .properties file, UTF-8 or Latin-1. Raises ConfigError if it cannot be read."""
    # Not at the top: its import takes longer than the rest of this module, and a start without -c does not need it.
    import javaproperties

    try:
        path = Path(file)
        if path.is_file() and path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(f"{file}: larger than {MAX_FILE_BYTES} bytes, so no configuration")
        data = path.read_bytes()
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = data.decode("latin-1")  # what java.util.Properties takes every file for
        return {key.strip(): value.strip() for key, value in javaproperties.loads(text).items()}
    except OSError as problem:
        raise ConfigError(f"cannot read {file}: {problem.strerror}") from None
    except javaproperties.InvalidUEscapeError as problem:
        raise ConfigError(f"{file}: {problem}") from None


def parse_overrides(words: list[str]) -> dict[str, str]:
    """Positional `key=value` words. Raises ConfigError for a word without `=` or without a key."""
    overrides = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"{_COMMAND_LINE}: {word}: expected key=value")
        overrides[key.strip()] = text.strip()
    return overrides


class Protection(NamedTuple):
    """What is lacking here, and the values that promise no more; case does not count."""

    lack: str
    allowed: tuple[str, ...] = ("false",)


_NO_PROTECTION = Protection("this broker has no such protection")
PROTECTIONS = {
    "aclEnable": _NO_PROTECTION,
    "enableDLegerCommitLog": _NO_PROTECTION,
    "authenticationEnabled": _NO_PROTECTION,
    "authorizationEnabled": _NO_PROTECTION,
    "enableControllerMode": Protection("this broker follows no controller, and nothing switches its role"),
    "allAckInSyncStateSet": Protection("this broker keeps no set of replicas in sync (inSyncReplicas counts them)"),
    "minInSyncReplicas": Protection("this broker stores messages also while slaves are missing", ("1", "0")),
    "storeType": Protection("this broker has no such store", ("default",)),
}
"""Keys that somebody relies on when they are on. There is nothing here that keeps what they promise."""


def _refuse_protections(settings: Settings) -> None:
    """A broker that was told to guard its topics or its log, and cannot, must not start as if it could."""
    for key, (lack, allowed) in PROTECTIONS.items():
        text = settings.texts.get(key, "").strip()
        if text and text.lower() not in allowed:
            raise settings.error(OptionError(key, text, f"{lack}; only {' or '.join(allowed)} is allowed"))


def _settle_identity(options: BrokerOptions, store_options: StoreOptions, settings: Settings) -> list[Remark]:
    """Role, id and the master's address must fit together, as in BrokerStartup of the official package."""
    _refuse_protections(settings)
    if store_options.ha_master_address:
        try:
            (_,) = parse_addresses(store_options.ha_master_address)
        except ValueError:
            problem = OptionError("haMasterAddress", store_options.ha_master_address, "allowed is one host:port")
            raise settings.error(problem) from None
    try:
        ip_of(options.broker_ip1)  # messages carry it, so a name has to stand for one
    except OSError as error:
        problem = OptionError("brokerIP1", options.broker_ip1, f"allowed is an IP address or a name of one: {error}")
        raise settings.error(problem) from None
    given = options.broker_id
    if store_options.broker_role is BrokerRole.SLAVE:
        if given <= 0:
            raise settings.error(OptionError("brokerId", str(given), "a SLAVE needs a number above 0"))
        return []
    options.broker_id = 0
    return [Remark("broker_id_of_a_master_is_0", {"given": str(given)})] if given else []


def _settle_ports(options: BrokerOptions, store_options: StoreOptions, settings: Settings) -> None:
    """The fast port is listenPort - 2; the port for slaves is listenPort + 1 unless it is given."""
    port = options.listen_port
    if port == 0:
        return  # every listener takes a free port
    if port < 3:
        raise settings.error(OptionError("listenPort", str(port), "the fast port, listenPort - 2, must be above 0"))
    if not store_options.ha_listen_port:
        store_options.ha_listen_port = port + 1
    if store_options.ha_listen_port in (port, port - 2):
        problem = OptionError("haListenPort", str(store_options.ha_listen_port), f"listenPort={port} uses this port")
        raise settings.error(problem)
