"""Pictures of scenes with OpenGL, off screen: hardware where there is a GPU, software elsewhere.

Two pictures come out: colours, smoothed at edges, and the number of the triangle at every exact
pixel centre. Everything else (depth, flow, masks) is computed from the numbers in float64 by
truth.py, so it is exact and does not depend on the driver.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mambapose.runtime.errors import ExportError
from mambapose.train.world import shaders
from mambapose.train.world.camera import Camera
from mambapose.train.world.scene import NOW, Light, Scene

NEAR, FAR = 0.1, 80.0
SHADOW_SIZE = 512
WIDE = 1024  # texels per row of the textures that hold vertices; as in shaders.FETCH
# Texture units by the name of the sampler.
_UNITS = ("table", "moving", "constant", "triangles", "shadow_map", "numbers")


@dataclass(frozen=True)
class Picture:
    """A rendered picture.

    rgba: (H, W, 4) uint8, colours multiplied by alpha, alpha below 255 only at edges and where
    a shadow falls on the bare floor; triangle: (H, W) int32 number over all things, -1 for none.
    """

    rgba: NDArray[np.uint8]
    triangle: NDArray[np.int32]


class Renderer:
    """An OpenGL context and its buffers; one per process, closed by ``with``."""

    def __init__(self) -> None:
        try:
            import moderngl as library
        except ImportError as err:
            raise ExportError(
                "moderngl was wanted, it is not installed; pip install 'mambapose[train]'"
            ) from err
        # Software rendering in the caller's thread: processes are the unit of parallelism, and
        # with a thread of its own Mesa's renderer hung or crashed after a thousand pictures.
        os.environ.setdefault("LP_NUM_THREADS", "0")
        moderngl: Any = library  # its stubs know neither strings of backends nor uniforms
        try:
            self._gl: Any = moderngl.create_context(standalone=True, backend="egl", require=330)
        except Exception as err:
            raise ExportError(
                f"an OpenGL 3.3 context through EGL was wanted, found: {err}; on Debian: "
                "apt-get install libegl1 libgl1-mesa-dri"
            ) from err
        gl: Any = self._gl
        self._number = gl.program(vertex_shader=shaders.VERTEX, fragment_shader=shaders.NUMBER)
        self._shade = gl.program(vertex_shader=shaders.VERTEX, fragment_shader=shaders.SHADOW)
        self._colour = gl.program(vertex_shader=shaders.SCREEN, fragment_shader=shaders.COLOUR)
        self._resolve = gl.program(vertex_shader=shaders.SCREEN, fragment_shader=shaders.RESOLVE)
        self._floor = gl.program(vertex_shader=shaders.FLOOR_VERTEX, fragment_shader=shaders.FLOOR)
        corners = gl.buffer(np.array([-1, -1, 3, -1, -1, 3], np.float32).tobytes())
        self._screen = {
            program: gl.vertex_array(program, [(corners, "2f", "in_corner")])
            for program in (self._colour, self._resolve)
        }
        self._shadow = gl.depth_texture((SHADOW_SIZE, SHADOW_SIZE))
        self._shadow.compare_func = "<="
        self._shadow.filter = (moderngl.LINEAR, moderngl.LINEAR)
        self._shadow_target = gl.framebuffer(depth_attachment=self._shadow)
        self._targets: dict[tuple[int, int], _Target] = {}
        for unit, name in enumerate(_UNITS):
            self._colour[name].value = unit
        self._resolve["samples"].value = len(_UNITS)

    @property
    def device(self) -> str:
        """The name of the driver's device."""
        return str(self._gl.info["GL_RENDERER"])

    def close(self) -> None:
        """Free the context."""
        self._gl.release()

    def __enter__(self) -> Renderer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.close()

    def picture(self, scene: Scene, moment: int = NOW) -> Picture:
        """The scene as its camera of that moment sees it."""
        with self._gl:  # another renderer of this process may have been the last to draw
            return self._picture(scene, moment)

    def _picture(self, scene: Scene, moment: int) -> Picture:
        gl = self._gl
        moving = np.concatenate([t.mesh.drawn(t.transforms[moment]) for t in scene.things])
        constant, faces = _constant(scene)
        table = np.concatenate([thing.mesh.table for thing in scene.things])
        buffers = [gl.buffer(np.ascontiguousarray(part).tobytes())
                   for part in (moving, constant, faces)]  # fmt: skip
        textures = {
            "table": gl.texture((1, len(table)), 4, table.tobytes(), dtype="f4"),
            "moving": self._texture(moving),
            "constant": self._texture(constant),
            "triangles": self._texture(faces),
        }
        for name, texture in textures.items():
            texture.use(_UNITS.index(name))
        self._shadow.use(_UNITS.index("shadow_map"))
        try:
            return self._draw(scene, scene.cameras[moment], moving[:, :3], buffers)
        finally:
            for resource in (*buffers, *textures.values()):
                resource.release()

    def _texture(self, rows: NDArray[Any]) -> Any:
        """A texture with the rows (n, 3, 6 or 8) one after another, WIDE texels to a line."""
        texels = rows.reshape(len(rows) * rows.shape[1] // 4, 4) if rows.shape[1] != 3 else rows
        high = -(-len(texels) // WIDE)
        padded = np.zeros((high * WIDE, texels.shape[1]), rows.dtype)
        padded[: len(texels)] = texels
        dtype = "f4" if rows.dtype == np.float32 else "i4"
        return self._gl.texture((WIDE, high), texels.shape[1], padded.tobytes(), dtype=dtype)

    def _draw(
        self, scene: Scene, camera: Camera, points: NDArray[np.float32], buffers: list[Any]
    ) -> Picture:
        gl = self._gl
        width, height = camera.size
        target = self._target(camera.size)
        gl.enable(gl.DEPTH_TEST)
        light_matrix = _light_matrix(scene, points)
        self._shadow_target.use()
        self._shadow_target.clear(depth=1.0)
        # Rooms throw no shadow: the light comes from outside them.
        casters = sum(len(t.mesh.triangles) for t in scene.things if not t.room)
        self._triangles(self._shade, buffers, light_matrix, 3 * casters)
        # Twice the pixels, every second one a pixel centre: 2 u + 1.
        fine = camera.cropped(np.array([[2.0, 0, 1], [0, 2.0, 1]]), target.size)
        target.numbers.use()
        target.numbers.clear(0.0, 0.0, 0.0, 0.0, depth=1.0)
        self._triangles(self._number, buffers, fine.clip_matrix(NEAR, FAR))
        target.number_texture.use(_UNITS.index("numbers"))
        target.empty.clear(0.0, 0.0, 0.0, 0.0)
        target.samples.use()
        if scene.shadows:
            self._draw_floor(scene, fine, points, light_matrix)
        gl.depth_func = ">"
        self._light(scene.light, fine, light_matrix)
        self._screen[self._colour].render()
        gl.depth_func = "<"
        gl.disable(gl.DEPTH_TEST)
        target.sample_texture.use(len(_UNITS))
        target.resolved.use()
        self._screen[self._resolve].render()
        rgba = np.frombuffer(target.resolved.read(components=4, alignment=1), np.uint8)
        code = np.frombuffer(target.numbers.read(components=4, alignment=1), np.uint8)
        code = code.reshape(target.size[1], target.size[0], 4)[1::2, 1::2].astype(np.int32)
        triangle = code[..., 0] + (code[..., 1] << 8) + (code[..., 2] << 16) - 1
        return Picture(rgba.reshape(height, width, 4), triangle)

    def _triangles(
        self, program: Any, buffers: list[Any], matrix: NDArray[np.float32], corners: int = -1
    ) -> None:
        moving, constant, index = buffers
        layout = [
            (moving, "3f 20x", "in_position"),
            (constant, "3f 1f 2f 1f 4x", "in_base", "in_material", "in_limbs", "in_start"),
        ]
        array = self._gl.vertex_array(program, layout, index)
        program["projection"].write(matrix.T.tobytes())
        program["table"].value = _UNITS.index("table")
        array.render(vertices=corners)
        array.release()

    def _draw_floor(
        self, scene: Scene, camera: Camera, points: NDArray[np.float32],
        light_matrix: NDArray[np.float32],
    ) -> None:  # fmt: skip
        """Draw the shadow on the floor, behind everything in the depth buffer."""
        light, program = scene.light, self._floor
        corners = _shadow_quad(points, light)
        buffer = self._gl.buffer(corners.tobytes())
        array = self._gl.vertex_array(program, [(buffer, "3f 2f", "in_position", "in_place")])
        key = float(light.key.mean() * light.key_to[1])
        rest = float((light.sky + light.fill.sum(axis=0) * 0.5).mean()) + 1e-3
        program["darkest"].value = 1 - (rest / (rest + key)) ** 0.4545
        program["projection"].write(camera.clip_matrix(NEAR, FAR).T.tobytes())
        self._shadow_uniforms(program, light, light_matrix)
        array.render(self._gl.TRIANGLE_STRIP)
        array.release()
        buffer.release()

    def _shadow_uniforms(self, program: Any, light: Light, matrix: NDArray[np.float32]) -> None:
        bias = np.array([[0.5, 0, 0, 0.5], [0, 0.5, 0, 0.5], [0, 0, 0.5, 0.5], [0, 0, 0, 1]])
        program["shadow_matrix"].write((bias @ matrix).astype(np.float32).T.tobytes())
        program["shadow_map"].value = _UNITS.index("shadow_map")
        program["shadow_blur"].value = light.blur

    def _light(self, light: Light, camera: Camera, matrix: NDArray[np.float32]) -> None:
        program = self._colour
        self._shadow_uniforms(program, light, matrix)
        rays = camera.rotation.T @ np.linalg.inv(camera.matrix)
        for name, value in (
            ("ray_matrix", rays.T), ("eye", camera.position),
            ("key_to", light.key_to), ("key_light", light.key), ("fill_to", light.fill_to),
            ("fill_light", light.fill), ("sky", light.sky), ("ground", light.ground),
        ):  # fmt: skip
            program[name].write(np.ascontiguousarray(value, np.float32).tobytes())

    def _target(self, size: tuple[int, int]) -> _Target:
        """The framebuffers of a picture size, made once."""
        if size not in self._targets:
            gl, fine = self._gl, (2 * size[0] + 1, 2 * size[1] + 1)
            numbers, samples = gl.texture(fine, 4), gl.texture(fine, 4)
            numbers.filter = (gl.NEAREST, gl.NEAREST)
            samples.filter = (gl.LINEAR, gl.LINEAR)
            depth = gl.depth_renderbuffer(fine)
            shaded = gl.framebuffer([samples], depth)
            shaded.depth_mask = False  # what the triangle numbers left is kept
            self._targets[size] = _Target(
                fine,
                numbers,
                gl.framebuffer([numbers], depth),
                samples,
                gl.framebuffer([samples]),
                shaded,
                gl.framebuffer([gl.renderbuffer(size, 4)]),
            )
        return self._targets[size]


@dataclass(frozen=True)
class _Target:
    """Framebuffers and textures of one picture size.

    size: (W, H) of the samples; empty: the samples without depth, which clearing would clear as
    well.
    """

    size: tuple[int, int]
    number_texture: Any
    numbers: Any
    sample_texture: Any
    empty: Any
    samples: Any
    resolved: Any


def _constant(scene: Scene) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """(V, 8) what never moves (base, material, limbs, table start, unused); (F, 3) triangles."""
    rows, faces, vertex, start = [], [], 0, 0
    for thing in scene.things:
        mesh = thing.mesh
        block = np.zeros((len(mesh.rest), 8), np.float32)
        block[:, :3], block[:, 3] = mesh.base, mesh.material
        block[:, 4:6], block[:, 6] = mesh.limbs, start
        rows.append(block)
        faces.append(mesh.triangles + vertex)
        vertex += len(mesh.rest)
        start += len(mesh.table)
    return np.concatenate(rows), np.concatenate(faces).astype(np.int32)


def _shadow_quad(points: NDArray[np.float32], light: Light) -> NDArray[np.float32]:
    """(4, 5) corners of the floor around the shadow of points (V, 3), and their places in -1..1."""
    fallen = points[:, [0, 2]] - points[:, 1:2] * (light.key_to[[0, 2]] / light.key_to[1])
    low, high = fallen.min(axis=0), fallen.max(axis=0)
    spare = 0.1 + 0.25 * (high - low)
    low, high = low - spare, high + spare
    signs = np.array([(-1, -1), (1, -1), (-1, 1), (1, 1)], np.float32)
    xz = (low + high) / 2 + signs * (high - low) / 2
    return np.stack([xz[:, 0], np.zeros(4), xz[:, 1], *signs.T], axis=1).astype(np.float32)


def _light_matrix(scene: Scene, points: NDArray[np.float32]) -> NDArray[np.float32]:
    """(4, 4) parallel projection from the key light around everything that is not floor."""
    solid = points[: sum(len(t.mesh.rest) for t in scene.things if not t.room)]
    low, high = solid.min(axis=0), solid.max(axis=0)
    centre, radius = (low + high) / 2, float(np.linalg.norm(high - low)) / 2 + 0.05
    forward = -scene.light.key_to
    side = np.cross(forward, [0.0, 1.0, 0.0])
    side = side / np.linalg.norm(side)
    up = np.cross(side, forward)
    out = np.eye(4)
    for row, axis, reach in ((0, side, radius), (1, up, radius), (2, forward, 6 * radius)):
        out[row, :3] = axis / reach
        out[row, 3] = -(axis @ centre) / reach
    return out.astype(np.float32)
