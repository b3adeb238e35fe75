"""The custom operator of ONNX Runtime: results, precedence over the function body, refusals."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from onnx import helper

from mambapose.plugins.onnx_function import attach_functions
from mambapose.plugins.reference import selective_scan_reference

pytestmark = pytest.mark.kernels


def test_operator_agrees_with_the_oracle(scan_case, limit, scans, ort_library):
    session = scans.session(scans.model(scan_case, free_batch=True), ort_library)
    y, state = scans.run(session, scan_case)
    wanted = selective_scan_reference(**scan_case.arguments, **scan_case.attributes)
    scans.close("y", y, wanted[0], limit)
    scans.close("final_state", state, wanted[1], 5e-6)
    assert y.dtype == scan_case.arguments["u"].dtype


def _operators_run(session, scans, case) -> set[str]:
    """Operator types of the nodes that ran, from ONNX Runtime's profile."""
    scans.run(session, case)
    with open(session.end_profiling()) as file:
        events = json.load(file)
    return {event["args"]["op_name"] for event in events if "op_name" in event.get("args", {})}


def test_operator_takes_over_from_the_function(scans, ort_library, tmp_path):
    """The node keeps its overload; the compiled kernel runs all the same when it is registered."""
    case = scans.case(K=2, reverse=(0, 1), merge="sum", optional=("z",))
    model = scans.model(case)
    attach_functions(model)
    assert model.graph.node[0].overload
    native = scans.session(model, ort_library, profile=tmp_path / "native")
    plain = scans.session(model, profile=tmp_path / "plain")
    assert _operators_run(native, scans, case) == {"SelectiveScan"}
    ran = _operators_run(plain, scans, case)
    assert "Scan" in ran
    assert "SelectiveScan" not in ran


def test_threads_change_nothing(scans, ort_library):
    case = scans.case(B=1, L=130, D=48, N=16, K=2, reverse=(0, 1), merge="sum")
    model = scans.model(case)
    results = [scans.run(scans.session(model, ort_library, threads=n), case) for n in (1, 2, 4)]
    for y, state in results[1:]:
        np.testing.assert_array_equal(y, results[0][0])
        np.testing.assert_array_equal(state, results[0][1])


def test_final_state_may_be_left_out(scans, ort_library):
    case = scans.case()
    model = scans.model(case)
    del model.graph.node[0].output[1]
    del model.graph.output[1]
    session = scans.session(model, ort_library)
    feed = {f"in_{name}": array for name, array in case.arguments.items() if name != "A"}
    wanted, _ = selective_scan_reference(**case.arguments, **case.attributes)
    scans.close("y", session.run(None, feed)[0], wanted, 2e-6)


def test_attributes_have_the_defaults_of_the_specification(scans, ort_library):
    case = scans.case()
    model = scans.model(case)
    del model.graph.node[0].attribute[:]
    y, _ = scans.run(scans.session(model, ort_library), case)
    scans.close("y", y, selective_scan_reference(**case.arguments)[0], 2e-6)


@pytest.mark.parametrize(("merge", "columns"), [("sum", 6), ("none", 12)])
def test_shapes_are_inferred(merge, columns, scans, ort_library):
    scans.need_onnxruntime(24, "crashes when it infers shapes of nodes that leave out inputs")
    case = scans.case(B=2, L=9, D=6, N=3, K=2, merge=merge)
    model = scans.model(case, free_batch=True)
    for output in model.graph.output:
        del output.type.tensor_type.shape.dim[:]
        output.type.tensor_type.ClearField("shape")
    y, state = scans.session(model, ort_library).get_outputs()
    assert (y.shape, y.type) == (["N", 9, columns], "tensor(float)")
    assert (state.shape, state.type) == (["N", 12, 3], "tensor(float)")


def _changed(scans, name, array, **signature):
    """A case with one argument replaced by something that does not fit."""
    case = scans.case(**signature)
    case.arguments[name] = array
    return case


F32 = np.float32


@pytest.mark.parametrize(
    ("name", "array", "options", "message"),
    [
        ("u", np.zeros((2, 9, 5), F32), {}, r"u: shape \(2, 9, 6\) was wanted, found \(2, 9, 5\)"),
        ("u", np.zeros((2, 8, 6), F32), {}, "u: shape"),
        ("dt", np.zeros((2, 9, 7), F32), {"K": 2}, r"dt: shape \(B, L, 2\*D\)"),
        ("A", -np.ones((5, 3), F32), {}, r"A: shape \(6, N\) was wanted, found \(5, 3\)"),
        ("B", np.zeros((2, 9, 4), F32), {}, r"B: shape \(2, 9, 3\) or \(6, 3\) was wanted"),
        ("C", np.zeros((5, 3), F32), {}, "C: shape"),
        ("D", np.zeros(5, F32), {}, r"D: shape \(6\)"),
        ("z", np.zeros((2, 9, 12), F32), {"K": 2}, r"z: shape \(2, 9, 6\)"),
        ("dt_bias", np.zeros(5, F32), {}, "dt_bias: shape"),
        ("order", np.zeros((3, 9), np.int32), {"K": 2}, r"order: shape \(9\) or \(2, 9\)"),
        ("order", np.full(9, 4, np.int32), {}, "order: every token once was wanted, found 4"),
        ("order", np.arange(1, 10, dtype=np.int32), {}, "a token from 0 to 8 was wanted, found 9"),
        ("order", np.arange(-1, 8, dtype=np.int32), {}, "a token from 0 to 8 was wanted, found -1"),
        ("initial_state", np.zeros((2, 6, 4), F32), {}, "initial_state: shape"),
        ("initial_state", np.zeros((2, 6, 3), F32), {"segment": 4}, "initial_state: segment 0"),
    ],
)
def test_misfits_are_refused_by_name(name, array, options, message, scans, ort_library):
    case = _changed(scans, name, array, **options)
    session = scans.session(scans.model(case, constants=()), ort_library)
    with pytest.raises(Exception, match=message):
        scans.run(session, case)


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("directions", 0, "directions: 1 to 64"),
        ("directions", 65, "directions: 1 to 64"),
        ("groups", 0, "groups: 1 or more"),
        ("segment", -1, "segment: 0 or"),
        ("reverse", [0, 1], "reverse: 1 flags"),
        ("reverse", [2], "reverse: flags of 0 or 1"),
        ("reverse", 1, "reverse: a list of flags was wanted, found one integer"),
        ("merge", "mean", "merge: 'none' or 'sum' was wanted, found 'mean'"),
        ("gate", "relu", "gate: 'silu' or 'none' was wanted, found 'relu'"),
    ],
)
def test_bad_attributes_are_refused_when_the_session_is_made(
    attribute, value, message, scans, ort_library
):
    model = scans.model(scans.case())
    attributes = model.graph.node[0].attribute
    kept = [entry for entry in attributes if entry.name != attribute]
    del attributes[:]
    attributes.extend([*kept, helper.make_attribute(attribute, value)])
    with pytest.raises(Exception, match=message):
        scans.session(model, ort_library)


def test_groups_must_divide_the_channels(scans, ort_library):
    case = scans.case()
    case.attributes["groups"] = 4
    session = scans.session(scans.model(case), ort_library)
    with pytest.raises(Exception, match="groups: a divisor of the 6 channels was wanted, found 4"):
        scans.run(session, case)


def test_gate_input_without_gate_is_refused(scans, ort_library):
    case = scans.case(optional=("z",))
    case.attributes["gate"] = "none"
    with pytest.raises(Exception, match="z: no gate input"):
        scans.run(scans.session(scans.model(case), ort_library), case)


def test_bad_constant_order_is_refused_when_the_session_is_made(scans, ort_library):
    case = _changed(scans, "order", np.full(9, 4, np.int32))
    with pytest.raises(Exception, match="order: every token once was wanted"):
        scans.session(scans.model(case), ort_library)


def test_constant_order_of_another_length_is_refused(scans, ort_library):
    """When the session is made only its own length is known."""
    case = scans.case()
    model = scans.model(_changed(scans, "order", np.arange(8, dtype=np.int32)))
    with pytest.raises(Exception, match=r"order: shape \(9\) or \(1, 9\) was wanted, found \(8\)"):
        scans.run(scans.session(model, ort_library), case)


def test_mixed_types_are_refused(scans, ort_library):
    case = _changed(scans, "dt", np.zeros((2, 9, 6), np.float16))
    with pytest.raises(Exception, match="SelectiveScan"):
        scans.session(scans.model(case), ort_library)


@pytest.mark.parametrize("name", ["B", "C"])
@pytest.mark.parametrize(
    ("constant", "message"), [("BC", "a constant in float32"), ("", "rows of the type of u")]
)
def test_matrices_of_the_other_type_are_refused(name, constant, message, scans, ort_library):
    """ONNX Runtime chooses the operator by types alone, so it lets these pass."""
    case = scans.case(half=True, constant=constant)
    other = np.float16 if constant else np.float32
    case.arguments[name] = case.arguments[name].astype(other)
    session = scans.session(scans.model(case), ort_library)
    with pytest.raises(Exception, match=f"SelectiveScan: {name}: {message} was wanted"):
        scans.run(session, case)


def test_one_session_runs_on_several_threads_at_once(scans, ort_library):
    signature = {"B": 1, "L": 300, "D": 48, "N": 16, "K": 2, "reverse": (0, 1), "merge": "sum"}
    cases = [scans.case(seed, **signature, optional=("z",)) for seed in range(4)]
    for case in cases:
        case.arguments["A"] = cases[0].arguments["A"]
    session = scans.session(scans.model(cases[0]), ort_library, threads=2)
    alone = [scans.run(session, case) for case in cases]
    with ThreadPoolExecutor(len(cases)) as pool:
        together = list(pool.map(lambda case: scans.run(session, case), cases * 5))
    for found, wanted in zip(together, alone * 5, strict=True):
        np.testing.assert_array_equal(found[0], wanted[0])
        np.testing.assert_array_equal(found[1], wanted[1])


def test_bound_memory_is_written_in_place(scans, ort_library):
    """Twice with other batch sizes; a result bound to an input's memory is refused."""
    import onnxruntime

    for batch in (2, 3):
        case = scans.case(B=batch)
        session = scans.session(scans.model(case, free_batch=True), ort_library)
        binding = session.io_binding()
        values = {
            entry.name: onnxruntime.OrtValue.ortvalue_from_numpy(
                case.arguments[entry.name.removeprefix("in_")]
            )
            for entry in session.get_inputs()
        }
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        y = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros((batch, 9, 6), F32))
        binding.bind_ortvalue_output("y", y)
        session.run_with_iobinding(binding)
        scans.close("y", y.numpy(), scans.run(session, case)[0], 0.0)
        binding.bind_ortvalue_output("y", values["in_u"])
        with pytest.raises(Exception, match=r"y: memory of its own was wanted.* u"):
            session.run_with_iobinding(binding)


def test_one_library_serves_many_sessions(scans, ort_library):
    """Sessions share the operators; closing one leaves the others running."""
    case = scans.case()
    model = scans.model(case)
    sessions = [scans.session(model, ort_library) for _ in range(3)]
    first = scans.run(sessions[0], case)[0]
    del sessions[0]
    for session in sessions:
        np.testing.assert_array_equal(scans.run(session, case)[0], first)


def test_order_may_be_computed_by_the_graph(scans, ort_library):
    case = scans.case(order="shared")
    model = scans.model(case, constants=("A",))
    wanted, _ = selective_scan_reference(**case.arguments, **case.attributes)
    y, _ = scans.run(scans.session(model, ort_library), case)
    scans.close("y", y, wanted, 2e-6)
