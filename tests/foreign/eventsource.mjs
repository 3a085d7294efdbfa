// npm's `eventsource`, which is what browsers have: it comes back by itself. A line of JSON for each event, until one says "end".
import { EventSource } from 'eventsource'

const feed = new EventSource(process.argv[2])
const print = event => {
  console.log(JSON.stringify([event.lastEventId, event.type, event.data]))
  if (event.data === 'end') feed.close()
}
feed.addEventListener('message', print)
feed.addEventListener('order', print)
feed.addEventListener('pere.hello', () => console.log('"open"'))
