// npm's `eventsource-parser` on Node's own fetch. It only takes the stream apart, so coming back is done here.
import { EventSourceParserStream } from 'eventsource-parser/stream'

let last = '', retry = 1000
for (let over = false; !over;) {
  try {
    const response = await fetch(process.argv[2], { headers: last ? { 'Last-Event-ID': last } : {} })
    const events = response.body.pipeThrough(new TextDecoderStream())
      .pipeThrough(new EventSourceParserStream({ onRetry: ms => { retry = ms } }))
    for await (const { id, event, data } of events) {
      if (event === 'pere.hello') console.log('"open"')
      if (id === undefined) continue
      last = id
      console.log(JSON.stringify([id, event ?? 'message', data]))
      if (data === 'end') { over = true; break }
    }
  } catch (error) {
    console.error(String(error))
  }
  await new Promise(wake => setTimeout(wake, retry))
}
process.exit()
