"""Which calls in a pickle are an attack: those that would run code in an ordinary reader.

Nothing is called in either case (``pickles.py``). An attack is refused with the name of what it
calls, everything else becomes a placeholder:

- what runs, imports, opens, sends or loads something in Python: all of ``MODULES`` and
  ``PACKAGES`` but ``HARMLESS``, and every function of ``builtins``, whose types of plain data and
  exceptions are let pass,
- the same in NumPy, PyTorch and pandas: ``FUNCTIONS``, and those of ``PACKAGES``,
- every method, such as ``pathlib.Path.write_text``: objects are made by classes and functions.
"""

from __future__ import annotations


def words(text: str) -> frozenset[str]:
    """The words of a table."""
    return frozenset(text.split())


# Whole modules; a folder of the user's own that is called ``code`` has modules of other names.
MODULES = words(
    """
    _aix_support _io _osx_support _pickle _posixsubprocess _thread atexit bdb cProfile
    cloudpickle code codecs codeop copyreg dill doctest fileinput ftplib functools gc glob
    imaplib imp inspect io joblib linecache logging.config marshal nt ntpath operator os
    pdb pickle pip pkgutil platform poplib posix profile pty py_compile pydoc requests runpy
    shelve shutil signal site smtplib socket ssl subprocess sys tarfile telnetlib tempfile threading
    timeit trace webbrowser winreg zipfile zipimport
    """
)
# With all that is in them.
PACKAGES = words(
    """
    asyncio concurrent ctypes distutils ensurepip http idlelib importlib lib2to3 multiprocessing
    numpy.ctypeslib numpy.distutils numpy.f2py numpy.lib numpy.testing pip setuptools sqlite3
    test.support torch._dynamo torch._inductor torch.distributed.run torch.fx torch.hub torch.jit
    torch.package torch.testing torch.utils._config_module torch.utils.bottleneck
    torch.utils.collect_env torch.utils.cpp_extension urllib venv xmlrpc
    """
)
FUNCTIONS = words(
    """
    _codecs.lookup numpy.fromfile numpy.genfromtxt numpy.load numpy.loadtxt numpy.memmap numpy.save
    numpy.savetxt numpy.savez numpy.savez_compressed pandas.eval pandas.read_pickle
    torch._utils._import_dotted_name torch.classes.load_library torch.load torch.ops.load_library
    torch.save torch.serialization.load torch.serialization.save torch.storage._load_from_bytes
    types.CodeType types.FunctionType types.LambdaType types.MethodType uuid._get_command_stdout
    """
)
# Of the modules above: what makes plain values, or another placeholder.
HARMLESS = words(
    """
    copyreg._reconstructor copyreg.__newobj__ copyreg.__newobj_ex__ functools.partial io.BytesIO
    _io.BytesIO io.StringIO _io.StringIO operator.itemgetter os.stat_result os.terminal_size
    """
)
PLAIN_TYPES = words(
    """
    bool bytearray bytes complex dict float frozenset int list object range set slice str tuple
    """
)


def would_run(module: str, name: str) -> bool:
    """Whether a call of ``module.name`` could do harm in a reader that calls."""
    whole, root = f"{module}.{name}", name.partition(".")[0]
    if whole in HARMLESS:
        return False
    if module == "builtins":
        return not (name in PLAIN_TYPES or (root[:1].isupper() and name == root))
    if module in MODULES or not FUNCTIONS.isdisjoint({whole, f"{module}.{root}"}):
        return True
    parts = module.split(".")
    if not PACKAGES.isdisjoint(".".join(parts[: end + 1]) for end in range(min(len(parts), 4))):
        return True
    return "." in name and not name.rpartition(".")[2].lstrip("_")[:1].isupper()
