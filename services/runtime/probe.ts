import { GraphBuilder } from '../graph/graph.ts'
import { createSession } from './session.ts'

/**
 * Without VNNI, ONNX Runtime's u8 × s8 kernel adds pairs of products in 16 bits and saturates: results come out wrong,
 * silently. Probed, not guessed from the CPU's name: 512 products of 255 × 127, which must give 16581120.
 */
export function saturatesInt8(stageDir: string): boolean {
  const inputs = 512
  const outputs = 16
  const g = new GraphBuilder()
  const scales = new Float32Array(outputs).fill(1)
  const product = g.runtimeOp('MatMulIntegerToFloat', [
    g.input('q', 'u8', ['M', inputs]),
    g.weight('w', {
      type: 'i8',
      shape: [inputs, outputs],
      source: { kind: 'bytes', bytes: new Uint8Array(new Int8Array(inputs * outputs).fill(127).buffer) },
    }),
    g.input('scale', 'f32', ['M', 1]),
    g.weight('b', { type: 'f32', shape: [outputs], source: { kind: 'bytes', bytes: new Uint8Array(scales.buffer) } }),
    g.byte(0),
  ])
  g.output('y', product, 'f32', ['M', outputs])
  const session = createSession(g.graph, { stageDir, provider: 'cpu', avoidSaturation: false })
  try {
    const { y } = session.run({
      q: { dims: [1, inputs], type: 'uint8', data: new Uint8Array(inputs).fill(255), location: 'cpu' },
      scale: { dims: [1, 1], type: 'float32', data: Float32Array.of(1), location: 'cpu' },
    })
    return y?.data[0] !== inputs * 255 * 127
  } finally {
    session.dispose()
  }
}
