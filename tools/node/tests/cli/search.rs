//! `search` against a gateway.

use std::net::UdpSocket;

use crate::gateway::Gateway;
use crate::run;

#[test]
fn a_gateway_that_is_asked_is_found() {
    let gateway = Gateway::good();
    let ran = run(&format!("search {} -C 1 -d", gateway.args()));
    ran.ends_with(0).says("-> SEARCHGW").prints(&format!("gateway 42 at {}\n", gateway.addr));
}

#[test]
fn a_gateway_is_printed_once_however_often_it_answers() {
    let gateway = Gateway::start(|_, frame| {
        let once = crate::gateway::good(frame);
        [once.clone(), once].concat()
    });
    let ran = run(&format!("search {} -W 0.3", gateway.args()));
    ran.ends_with(0).prints(&format!("gateway 42 at {}\n", gateway.addr));
}

#[test]
fn no_gateway_ends_with_69() {
    let gateway = Gateway::silent();
    run(&format!("search {} -W 0.2", gateway.args())).ends_with(69).says("no gateway made itself known");
    let nobody = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    run(&format!("search -h 127.0.0.1 -p {nobody}")).ends_with(69).says("nobody listens");
}

#[test]
fn a_group_is_asked_by_multicast() {
    // A member of the group on the loopback interface stands for the gateway.
    let member = UdpSocket::bind("0.0.0.0:0").unwrap();
    let group = "239.77.77.77";
    if member.join_multicast_v4(&group.parse().unwrap(), &"127.0.0.1".parse().unwrap()).is_err() {
        return;
    }
    let port = member.local_addr().unwrap().port();
    let answer = std::thread::spawn(move || {
        let mut buffer = [0; 16];
        let (len, from) = member.recv_from(&mut buffer).unwrap();
        assert_eq!(buffer[..len], [3, 1, 1]);
        member.send_to(&[3, 2, 9], from).unwrap();
    });
    let ran = run(&format!("search -h {group} -p {port} --interface 127.0.0.1 -C 1 -W 5")).ends_with(0);
    assert!(ran.out.starts_with("gateway 9 at 127.0.0.1"), "{}", ran.out);
    answer.join().unwrap();
}
