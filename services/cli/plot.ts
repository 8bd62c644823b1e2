/** Line charts as SVG text, side by side in one document: for reports, without a library. */

export type Series = { name: string; points: readonly { x: number; y: number }[] }

export type LineChart = { title: string; xLabel: string; series: readonly Series[] }

const [width, height] = [360, 260]
const margin = { left: 56, right: 16, top: 34, bottom: 42 }
/** Distinct in print and to most kinds of colour blindness. */
const colours = ['#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9']

/** Every x that occurs has its tick, evenly spaced: steps usually double. y begins at 0. */
export function plotSvg(charts: readonly LineChart[]): string {
  const body = charts.map((chart, index) => `<g transform="translate(${index * width},0)">${chartSvg(chart)}</g>`)
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${charts.length * width} ${height}" font-family="sans-serif" font-size="11">`,
    `<rect width="${charts.length * width}" height="${height}" fill="white"/>`,
    ...body,
    '</svg>',
    '',
  ].join('\n')
}

function chartSvg({ title, xLabel, series }: LineChart): string {
  const xs = [...new Set(series.flatMap(({ points }) => points.map(({ x }) => x)))].sort((a, b) => a - b)
  const largest = Math.max(0, ...series.flatMap(({ points }) => points.map(({ y }) => y)))
  const { step, end } = ticks(largest)
  const [innerWidth, innerHeight] = [width - margin.left - margin.right, height - margin.top - margin.bottom]
  const toX = (x: number) => round(margin.left + (innerWidth * (xs.indexOf(x) + 0.5)) / Math.max(1, xs.length))
  const toY = (y: number) => round(margin.top + innerHeight * (1 - y / end))
  const right = width - margin.right
  const bottom = height - margin.bottom
  const parts = [`<text x="${width / 2}" y="14" text-anchor="middle" font-weight="bold">${escapeXml(title)}</text>`]
  for (let y = 0; y <= end + step / 2; y += step) {
    parts.push(
      `<line x1="${margin.left}" x2="${right}" y1="${toY(y)}" y2="${toY(y)}" stroke="#dddddd"/>`,
      `<text x="${margin.left - 6}" y="${toY(y) + 4}" text-anchor="end">${Number(y.toPrecision(6))}</text>`,
    )
  }
  for (const x of xs) parts.push(`<text x="${toX(x)}" y="${bottom + 16}" text-anchor="middle">${x}</text>`)
  parts.push(
    `<text x="${margin.left + innerWidth / 2}" y="${height - 8}" text-anchor="middle">${escapeXml(xLabel)}</text>`,
  )
  for (const [index, { name, points }] of series.entries()) {
    const colour = colours[index % colours.length]
    const path = points.map(({ x, y }) => `${toX(x)},${toY(y)}`).join(' ')
    parts.push(`<polyline points="${path}" fill="none" stroke="${colour}" stroke-width="2"/>`)
    for (const { x, y } of points) parts.push(`<circle cx="${toX(x)}" cy="${toY(y)}" r="3" fill="${colour}"/>`)
    if (series.length < 2) continue
    const legendX = margin.left + 4 + index * 60
    parts.push(
      `<rect x="${legendX}" y="20" width="9" height="9" fill="${colour}"/>`,
      `<text x="${legendX + 13}" y="28">${escapeXml(name)}</text>`,
    )
  }
  return parts.join('\n')
}

/** About five steps of 1, 2 or 5 times a power of ten; `end` is the first at or above `largest`. */
function ticks(largest: number): { step: number; end: number } {
  if (!(largest > 0)) return { step: 1, end: 1 }
  const rough = largest / 5
  const power = 10 ** Math.floor(Math.log10(rough))
  const step = ([1, 2, 5].find((factor) => factor * power >= rough) ?? 10) * power
  return { step, end: Math.ceil(largest / step - 1e-9) * step }
}

function round(value: number): number {
  return Math.round(value * 10) / 10
}

function escapeXml(text: string): string {
  return text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;')
}
