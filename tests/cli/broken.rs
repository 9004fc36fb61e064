//! Broken configurations and what `check` says about each.

use super::Folder;

/// The messages about `text`, without the excerpts and the last line.
#[track_caller]
fn messages(text: impl AsRef<[u8]>) -> Vec<String> {
    let ended = Folder::with(text).run(&["check", "gateway.yaml"]);
    assert_eq!((ended.stdout.as_str(), ended.code), ("", 78), "{}", ended.stderr);
    let messages: Vec<String> =
        ended.stderr.lines().filter_map(|line| line.strip_prefix("gateway.yaml:")).map(Into::into).collect();
    let count = match messages.len() {
        1 => "1 error".to_string(),
        count => format!("{count} errors"),
    };
    assert_eq!(
        ended.stderr.lines().last(),
        Some(format!("mqtt-sn-gateway: {count} in gateway.yaml").as_str())
    );
    messages
}

#[test]
fn each_mistake_is_named_at_its_place() {
    for (text, expected) in TABLE {
        assert_eq!(messages(text), [*expected], "in\n{text}");
    }
}

const TABLE: &[(&str, &str)] = &[
    (
        "broker:\n\tkeep_alive: 60s\n",
        "2:2: not YAML: tabs disallowed within this context (block indentation)",
    ),
    (
        "broker:\n  url: 'mqtt://a\n",
        "2:8: not YAML: while scanning a quoted scalar, found unexpected end of stream",
    ),
    (
        "broker:\n  url: \"mqtt://a\\q\"\n",
        "2:8: not YAML: while parsing a quoted scalar, found unknown escape character",
    ),
    (
        "broker: { url: mqtt://a\nlog: {}\n",
        "2:4: not YAML: while parsing a flow mapping, did not find expected ',' or '}'",
    ),
    (
        "broker:\n  url: mqtt://a\n   mode: aggregating\n",
        "3:8: not YAML: mapping values are not allowed in this context",
    ),
    (
        "transports:\n  - { name: a, type: udp, listen: [::]:1884 }\n",
        "2:39: not YAML: while parsing a flow mapping, did not find expected ',' or '}'; a value with braces or brackets in it needs quotes here",
    ),
    (
        "gateway: { id: ${ID} }\n",
        "1:17: not YAML: while parsing a flow mapping, did not find expected ',' or '}'; a value with braces or brackets in it needs quotes here",
    ),
    ("version: 1\n---\nversion: 1\n", "2:1: a second document, expected one in a file"),
    ("broker:\n  ? [a]\n  : b\n", "2:5: a key with parts, expected a word"),
    ("hello\n", "1:1: found \"hello\", expected a map of keys and values"),
    ("- a\n- b\n", "1:1: found a list of 2, expected a map of keys and values"),
    (
        "gateway:\n  id: &a 1\nsessions:\n  max: *a\n",
        "4:8: sessions.max: found an alias, which is not offered here, expected the value itself",
    ),
    (
        "gateway:\n  id: !!int 1\n",
        "2:7: gateway.id: found a tag, which is not offered here, expected the value itself",
    ),
    ("broker:\n  keepalive: 60s\n", "2:3: broker.keepalive: unknown key; did you mean \"keep_alive\"?"),
    ("broker:\n  Keep-Alive: 60s\n", "2:3: broker.Keep-Alive: unknown key; did you mean \"keep_alive\"?"),
    ("broekr:\n  url: mqtt://a\n", "1:1: broekr: unknown key; did you mean \"broker\"?"),
    ("retry_limit: 3\n", "1:1: retry_limit: unknown key; did you mean \"sessions.retry_limit\"?"),
    (
        "broker:\n  colour: red\n",
        "2:3: broker.colour: unknown key, expected url, urls, mode, protocol, client_id, username, password_file, tls, clients, client_id_template, wills, keep_alive, outage, outage_queue, ack_timeout, grace or listen",
    ),
    (
        "sessions:\n  queue:\n    mesages: 1\n",
        "3:5: sessions.queue.mesages: unknown key; did you mean \"messages\"?",
    ),
    (
        "transports:\n  - { name: a, type: udp, baud: 9600 }\n",
        "2:27: transports[0].baud: unknown key, expected name, type, listen, multicast, multicast_interface, mode, mtu, retry_interval, retry_limit, forwarders or qos_minus_one",
    ),
    (
        "broker:\n  url: mqtt://a\n  grace: 60s\n  url: mqtt://b\n",
        "4:3: broker.url: duplicate key, it stands in line 2 already",
    ),
    ("log: {}\nlog: {}\n", "2:1: log: duplicate key, it stands in line 1 already"),
    (
        "topics:\n  predefined:\n    1: a\n    0x1: b\n",
        "4:5: topics.predefined.0x1: duplicate key, it stands in line 3 already",
    ),
    ("gateway: 1\n", "1:10: gateway: found 1, expected a map of keys and values"),
    ("gateway:\n  id: one\n", "2:7: gateway.id: found \"one\", expected a number from 1 to 255"),
    ("gateway:\n  id: \"1\"\n", "2:7: gateway.id: found \"1\", expected a number from 1 to 255"),
    ("gateway:\n  id: [1, 2]\n", "2:7: gateway.id: found a list of 2, expected a number from 1 to 255"),
    ("gateway:\n  id:\n", "2:5: gateway.id: found nothing, expected a number from 1 to 255"),
    (
        "sessions:\n  queue:\n    qos0: yes\n",
        "3:11: sessions.queue.qos0: found \"yes\", expected true or false; did you mean \"true\"?",
    ),
    (
        "broker:\n  username: { a: b }\n",
        "2:13: broker.username: found a map of keys and values, expected a user name",
    ),
    ("version: 2\n", "1:10: version: found 2, expected 1"),
    ("gateway:\n  id: 0\n", "2:7: gateway.id: found 0, expected a number from 1 to 255"),
    ("gateway:\n  id: 256\n", "2:7: gateway.id: found 256, expected a number from 1 to 255"),
    (
        "gateway:\n  advertise_interval: 1d\n",
        "2:23: gateway.advertise_interval: found \"1d\", expected a duration from 1s to 65535s in whole seconds",
    ),
    (
        "broker:\n  keep_alive: 60\n",
        "2:15: broker.keep_alive: 60 has no unit, expected a duration from 1s to 65535s in whole seconds",
    ),
    (
        "broker:\n  keep_alive: 1500ms\n",
        "2:15: broker.keep_alive: found \"1500ms\", expected a duration from 1s to 65535s in whole seconds",
    ),
    (
        "broker:\n  ack_timeout: soon\n",
        "2:16: broker.ack_timeout: found \"soon\", expected a duration from 100ms to 1h",
    ),
    (
        "broker:\n  ack_timeout: 8 sec\n",
        "2:16: broker.ack_timeout: found \"8 sec\", expected a duration from 100ms to 1h; did you mean \"8s\"?",
    ),
    (
        "sessions:\n  queue:\n    bytes: 64KB\n",
        "3:12: sessions.queue.bytes: found \"64KB\", expected a size from 1KiB to 1GiB; did you mean \"64KiB\"?",
    ),
    (
        "sessions:\n  queue_total: 1B\n",
        "2:16: sessions.queue_total: found \"1B\", expected a size from 1KiB to 1GiB",
    ),
    (
        "sessions:\n  queue: { bytes: 64KiB }\n  queue_total: 32KiB\n",
        "3:16: sessions.queue_total: is less than queue.bytes, expected room for at least one client",
    ),
    (
        "broker:\n  outage: quue\n",
        "2:11: broker.outage: found \"quue\", expected queue or reject; did you mean \"queue\"?",
    ),
    (
        "log:\n  level: verbose\n",
        "2:10: log.level: found \"verbose\", expected error, warn, info, debug or trace",
    ),
    (
        "sessions:\n  rebind: same_ip\n",
        "2:11: sessions.rebind: found \"same_ip\", expected none, same-ip or any; did you mean \"same-ip\"?",
    ),
    (
        "broker:\n  url: tcp://a:1883\n",
        "2:8: broker.url: found \"tcp://a:1883\", expected mqtt://host:port, mqtts://host:port or embedded; did you mean \"mqtt://a:1883\"?",
    ),
    (
        "broker:\n  url: mqtt://user:secret@a\n",
        "2:8: broker.url: \"mqtt://user:secret@a\" holds credentials, which belong into username and password_file, expected mqtt://host:port, mqtts://host:port or embedded",
    ),
    (
        "broker:\n  url: mqtt://a:99999\n",
        "2:8: broker.url: \"mqtt://a:99999\" has no port from 1 to 65535, expected mqtt://host:port, mqtts://host:port or embedded",
    ),
    (
        "broker:\n  urls: []\n",
        "2:9: broker.urls: found an empty list, expected a list of 1 to 16, each mqtt://host:port, mqtts://host:port or embedded",
    ),
    (
        "broker:\n  urls: [mqtt://a, a:1883]\n",
        "2:20: broker.urls[1]: found \"a:1883\", expected mqtt://host:port, mqtts://host:port or embedded; did you mean \"mqtt://a:1883\"?",
    ),
    (
        "broker:\n  url: mqtt://a\n  urls: [mqtt://b]\n",
        "3:9: broker.urls: stands beside url, expected one of the two",
    ),
    (
        "broker:\n  urls: [embedded, mqtt://b]\n",
        "2:9: broker.urls: \"embedded\" stands beside others, expected it alone",
    ),
    (
        "broker:\n  listen: localhost:1883\n",
        "2:11: broker.listen: found \"localhost:1883\", expected an IP address and a port such as 0.0.0.0:1884 or \"[::]:1884\"",
    ),
    (
        "broker:\n  listen: 127.0.0.1:0\n",
        "2:11: broker.listen: \"127.0.0.1:0\" has no port from 1 to 65535, expected an IP address and a port such as 0.0.0.0:1884 or \"[::]:1884\"",
    ),
    (
        "broker:\n  client_id: \"\"\n",
        "2:14: broker.client_id: \"\" is empty, expected a client id of 1 to 128 octets or auto",
    ),
    ("broker:\n  password_file: /p\n", "2:18: broker.password_file: stands without username, expected both"),
    ("broker:\n  url: mqtt://${NOWHERE}\n", "2:8: broker.url: the environment variable NOWHERE is not set"),
    (
        "transports: []\n",
        "1:13: transports: found an empty list, expected a list of 1 to 64, each a map of keys and values",
    ),
    (
        "transports:\n",
        "1:11: transports: found nothing, expected a list of 1 to 64, each a map of keys and values",
    ),
    (
        "transports:\n  - { name: a, type: upd }\n",
        "2:22: transports[0].type: found \"upd\", expected udp, serial, xbee or dtls; did you mean \"udp\"?",
    ),
    (
        "transports:\n  - { type: udp }\n",
        "2:5: transports[0].name: missing, expected 1 to 32 letters, digits, - and _",
    ),
    (
        "transports:\n  - { name: a }\n",
        "2:5: transports[0].type: missing, expected udp, serial, xbee or dtls",
    ),
    (
        "transports:\n  - { name: a b, type: udp }\n",
        "2:13: transports[0].name: found \"a b\", expected 1 to 32 letters, digits, - and _",
    ),
    (
        "transports:\n  - { name: a, type: udp }\n  - { name: a, type: udp, listen: 0.0.0.0:1 }\n",
        "3:13: transports[1].name: the transport in line 2 has the same name, expected another",
    ),
    (
        "transports:\n  - { name: a, type: udp, listen: 0.0.0.0:1 }\n  - { name: b, type: udp, listen: 0.0.0.0:1 }\n",
        "3:35: transports[1].listen: 0.0.0.0:1 is listened on in line 2 too, expected another address",
    ),
    (
        "transports:\n  - name: a\n    type: udp\n    listen:\n      - 0.0.0.0:1884\n      - 0.0.0.0\n",
        "6:9: transports[0].listen[1]: \"0.0.0.0\" has no port, expected an IP address and a port such as 0.0.0.0:1884 or \"[::]:1884\"",
    ),
    (
        "transports:\n  - { name: a, type: udp, multicast: 10.0.0.1:1884 }\n",
        "2:38: transports[0].multicast: found \"10.0.0.1:1884\", expected a multicast group and a port such as 225.1.1.1:1884 or none",
    ),
    (
        "transports:\n  - { name: a, type: udp, listen: 0.0.0.0:1, multicast: '[ff02::1]:1884' }\n",
        "2:57: transports[0].multicast: has another IP version than every listen address, expected one of the same",
    ),
    (
        "transports:\n  - { name: a, type: udp, multicast_interface: eth0 }\n",
        "2:48: transports[0].multicast_interface: stands without multicast, expected both",
    ),
    (
        "transports:\n  - { name: a, type: udp, mtu: 9 }\n",
        "2:32: transports[0].mtu: found 9, expected a number from 32 to 65507",
    ),
    (
        "topics:\n  predefined: { 0: a }\n",
        "2:17: topics.predefined.0: found 0, expected a number from 1 to 65534",
    ),
    (
        "topics:\n  predefined: { 65535: a }\n",
        "2:17: topics.predefined.65535: found 65535, expected a number from 1 to 65534",
    ),
    (
        "topics:\n  predefined: { a: 1 }\n",
        "2:17: topics.predefined.a: found \"a\", expected a number from 1 to 65534",
    ),
    (
        "topics:\n  predefined: { 1: a/# }\n",
        "2:20: topics.predefined.1: \"a/#\" contains a wildcard, expected a topic name",
    ),
    (
        "topics:\n  predefined: { 1: a, 2: a }\n",
        "2:26: topics.predefined.2: \"a\" stands in line 2 already, expected another",
    ),
    (
        "topics:\n  clients:\n    pump-7: { 1: a, 65535: b }\n",
        "3:21: topics.clients.pump-7.65535: found 65535, expected a number from 1 to 65534",
    ),
    (
        "topics:\n  clients:\n    \"\": { 1: a }\n",
        "3:5: topics.clients.\"\": \"\" is empty, expected a client id of 1 to 128 octets",
    ),
    ("broker:\n  protocol: 4\n", "2:13: broker.protocol: found 4, expected auto, 3.1.1 or 5"),
    (
        "broker:\n  tls: { ca: /ca }\n",
        "2:8: broker.tls: stands without a url that begins with mqtts://, expected both",
    ),
    (
        "broker:\n  url: embedded\n  clients: { a: { cert: /c, key: /k } }\n",
        "3:12: broker.clients: the cert of a stands without a url that begins with mqtts://, expected both",
    ),
    (
        "broker:\n  url: mqtts://a\n  tls: { cert: /c }\n",
        "3:16: broker.tls.cert: stands without key, expected both",
    ),
    (
        "broker:\n  url: mqtts://a\n  tls: { key: /c }\n",
        "3:15: broker.tls.key: stands without cert, expected both",
    ),
    (
        "broker:\n  url: mqtts://a\n  clients: { a: { key: /c } }\n",
        "3:24: broker.clients.a.key: stands without cert, expected both",
    ),
    (
        "broker:\n  url: mqtts://\n  tls: { ca: /ca }\n",
        "2:8: broker.url: \"mqtts://\" has no host, expected mqtt://host:port, mqtts://host:port or embedded",
    ),
    (
        "broker:\n  url: mqtts://a\n  tls: { insecure: true }\n",
        "3:10: broker.tls.insecure: unknown key, expected ca, cert or key",
    ),
    (
        "transports:\n  - { name: a, type: serial }\n",
        "2:5: transports[0].device: missing, expected a path such as /dev/ttyUSB0",
    ),
    (
        "transports:\n  - { name: a, type: serial, device: ttyUSB0 }\n",
        "2:38: transports[0].device: found \"ttyUSB0\", expected a path such as /dev/ttyUSB0; did you mean \"/dev/ttyUSB0\"?",
    ),
    (
        "transports:\n  - { name: a, type: xbee, device: ./radio }\n",
        "2:36: transports[0].device: found \"./radio\", expected a path such as /dev/ttyUSB0",
    ),
    (
        "transports:\n  - { name: a, type: xbee, device: /dev/ttyUSB0, flow: xon-xoff }\n",
        "2:56: transports[0].flow: found \"xon-xoff\", which no such module knows, expected none or rts-cts",
    ),
    (
        "transports:\n  - { name: a, type: dtls, psk_file: /psk }\n",
        "2:22: transports[0].type: \"dtls\" is not in this version",
    ),
];

#[test]
fn all_mistakes_come_at_once_in_the_order_of_the_file() {
    let folder = Folder::with(
        "broker:\n  ulr: mqtt://broker   # é\n  outage: quue\n  outage: queue\ntransports:\n  \
         - { name: lan, type: udp, listen: [\"[::]\", localhost:1884] }\n  \
         - { name: lan, type: dtls, psk_file: /psk }\nsesions: {}\n",
    );
    let ended = folder.run(&["check", "gateway.yaml"]);
    assert_eq!(
        ended.stderr,
        "\
gateway.yaml:2:3: broker.ulr: unknown key; did you mean \"url\"?
      ulr: mqtt://broker   # é
      ^^^
gateway.yaml:3:11: broker.outage: found \"quue\", expected queue or reject; did you mean \"queue\"?
      outage: quue
              ^^^^
gateway.yaml:4:3: broker.outage: duplicate key, it stands in line 3 already
      outage: queue
      ^^^^^^
gateway.yaml:6:38: transports[0].listen[0]: \"[::]\" has no port, expected an IP address and a port such as \
0.0.0.0:1884 or \"[::]:1884\"
      - { name: lan, type: udp, listen: [\"[::]\", localhost:1884] }
                                         ^^^^^^
gateway.yaml:6:46: transports[0].listen[1]: found \"localhost:1884\", expected an IP address and a port such as \
0.0.0.0:1884 or \"[::]:1884\"
      - { name: lan, type: udp, listen: [\"[::]\", localhost:1884] }
                                                 ^^^^^^^^^^^^^^
gateway.yaml:7:13: transports[1].name: the transport in line 6 has the same name, expected another
      - { name: lan, type: dtls, psk_file: /psk }
                ^^^
gateway.yaml:7:24: transports[1].type: \"dtls\" is not in this version
      - { name: lan, type: dtls, psk_file: /psk }
                           ^^^^
gateway.yaml:8:1: sesions: unknown key; did you mean \"sessions\"?
    sesions: {}
    ^^^^^^^
mqtt-sn-gateway: 8 errors in gateway.yaml
"
    );
    assert_eq!((ended.stdout.as_str(), ended.code), ("", 78));
}

#[test]
fn what_a_variable_holds_is_never_shown() {
    // HOST is broker.example in every run of these tests.
    for (text, expected) in [
        (
            "gateway:\n  id: ${HOST}\n",
            "2:7: gateway.id: found \"${HOST}\" with its variables replaced, expected a number from 1 to 255",
        ),
        (
            "broker:\n  url: ${HOST}:1883\n",
            "2:8: broker.url: found \"${HOST}:1883\" with its variables replaced, expected mqtt://host:port, \
             mqtts://host:port or embedded",
        ),
    ] {
        assert_eq!(messages(text), [expected]);
    }
}

#[test]
fn a_file_that_is_no_text_is_refused_at_the_octet() {
    assert_eq!(
        messages(b"gateway:\n  id: 1 # caf\xE9\n"),
        ["2:14: the octet 0xE9 is not UTF-8, expected text in UTF-8"]
    );
    assert_eq!(messages([0x7F, b'E', b'L', b'F', 2, 1, 1, 0]).len(), 1);
    assert_eq!(
        messages(vec![b' '; (1 << 20) + 1]),
        ["1:1: more than 1048576 octets, expected a configuration"]
    );
}
