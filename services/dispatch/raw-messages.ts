/** Messages of the internal services are encoded by hand: gRPC hands their bytes through. */
export const raw = (message: Buffer): Buffer => message

export const rawCodec = {
  requestSerialize: raw,
  requestDeserialize: raw,
  responseSerialize: raw,
  responseDeserialize: raw,
}
