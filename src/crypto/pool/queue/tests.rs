use super::*;

#[derive(Debug, PartialEq, Eq)]
struct Item([u64; 2]);

impl Kept for Item {
    const BYTES: usize = 16;

    fn put(self, bytes: &mut [u8]) {
        assert!(put_limbs(&self.0, bytes).is_empty());
    }

    fn take(bytes: &[u8]) -> Item {
        let mut numbers = [0; 2];
        assert!(take_limbs(&mut numbers, bytes).is_empty());
        Item(numbers)
    }
}

fn item(number: u64) -> Item {
    Item([number, u64::MAX - number])
}

#[test]
fn items_come_out_once_in_the_order_they_went_in() {
    let mut queue = Queue::new(5).unwrap();
    let (mut put, mut taken) = (0, 0);
    for round in 0..100_u64 {
        for _ in 0..round % 4 {
            if queue.room() > 0 {
                queue.push(item(put));
                put += 1;
            }
        }
        for _ in 0..round % 3 {
            if let Some(found) = queue.pop() {
                assert_eq!(found, item(taken));
                taken += 1;
            }
        }
        assert_eq!(queue.len() as u64, put - taken);
        assert_eq!(queue.room(), 5 - queue.len());
    }
    assert!(taken > 50, "{taken}");
}

#[test]
fn what_does_not_fit_is_dropped() {
    let mut queue = Queue::new(2).unwrap();
    (0..4).for_each(|number| queue.push(item(number)));
    assert_eq!(
        (queue.pop(), queue.pop(), queue.pop()),
        (Some(item(0)), Some(item(1)), None)
    );
}

#[test]
fn a_place_is_wiped_when_its_item_is_taken() {
    let mut queue = Queue::new(4).unwrap();
    (1..5).for_each(|number| queue.push(item(number)));
    for left in (0..4).rev() {
        queue.pop().unwrap();
        let entries = queue.memory[COUNTERS_BYTES..COUNTERS_BYTES + 64].chunks(16);
        assert_eq!(entries.filter(|entry| **entry != [0; 16]).count(), left);
    }
    queue.push(item(7));
    queue.clear();
    assert!(queue.memory.iter().all(|&byte| byte == 0));
    assert!(queue.pop().is_none());
}
